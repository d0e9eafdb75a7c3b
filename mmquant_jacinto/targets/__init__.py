"""Targets: one file for each engine, with all that is particular to it.

Formats, arithmetic, the form of a file and what goes beside it. What targets share is
in ``target`` (the class to subclass), ``preset``, ``formats``, ``grid``,
``fixed_point`` (the arithmetic to start from) and ``storage``. Imports nothing of the
package but ``errors`` and ``registry``.
"""

from .jacinto import Jacinto
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .tensorrt import TensorRt
from .tidl import Tidl

__all__ = ['Jacinto', 'OnnxRuntime', 'OpenVino', 'TensorRt', 'Tidl']

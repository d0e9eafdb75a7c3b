"""Rules of the engines as data: ``table`` is their form, one file an engine."""

from .onnxruntime import RULES as ONNXRUNTIME_RULES
from .openvino import RULES as OPENVINO_RULES
from .table import Rules
from .tensorrt import RULES as TENSORRT_RULES
from .tidl import RULES as TIDL_RULES
from .tidl import TDA4VM_RULES

__all__ = [
    'ONNXRUNTIME_RULES',
    'OPENVINO_RULES',
    'Rules',
    'TDA4VM_RULES',
    'TENSORRT_RULES',
    'TIDL_RULES',
]

"""TensorRT: explicit quantization, without zero points.

It runs on no machine here: tests compute as ONNX Runtime does with the same file.
"""

from ..registry import QUANT_TARGETS
from .formats import TensorFormat
from .onnxruntime import QdqArithmetic
from .preset import PER_CHANNEL, Preset
from .storage import SIGNED
from .target import Target


@QUANT_TARGETS.register_module(name='tensorrt')
class TensorRt(Target):
    """S8 weights with a scale for each channel, S8 activations."""

    preset = Preset(weight=PER_CHANNEL, activation=TensorFormat())
    arithmetic = QdqArithmetic
    storage = SIGNED
    max_bits = 8
    packs_4_bits = True

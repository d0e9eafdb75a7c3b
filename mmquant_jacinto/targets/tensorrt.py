"""TensorRT: explicit quantization, without zero points.

Biases are real numbers: its parser is reported to refuse INT32 behind
DequantizeLinear (NVIDIA/TensorRT 3360, onnx/onnx-tensorrt 850), and scales of a
transposed convolution along any axis but the first (NVIDIA/TensorRT 2380).

It runs on no machine here: tests compute as ONNX Runtime does with the same file.
"""

from ..registry import QUANT_TARGETS
from .formats import TensorFormat
from .onnxruntime import QdqArithmetic
from .preset import PER_CHANNEL, Preset
from .rules import TENSORRT_RULES
from .storage import SIGNED
from .target import Target


@QUANT_TARGETS.register_module(name='tensorrt')
class TensorRt(Target):
    """S8 weights with a scale for each channel, S8 activations."""

    preset = Preset(
        weight=PER_CHANNEL, activation=TensorFormat(), calibration_observer='minmax'
    )
    arithmetic = QdqArithmetic
    storage = SIGNED
    max_bits = 8
    has_float_biases = True
    rules = TENSORRT_RULES

"""OpenVINO. Its own arithmetic is not known here yet: tests compute as ONNX Runtime."""

from ..registry import QUANT_TARGETS
from .onnxruntime import QdqArithmetic
from .preset import AFFINE, PER_CHANNEL, Preset
from .target import Target


@QUANT_TARGETS.register_module(name='openvino')
class OpenVino(Target):
    """S8 weights with a scale for each channel, U8 activations with a zero point."""

    preset = Preset(weight=PER_CHANNEL, activation=AFFINE)
    arithmetic = QdqArithmetic
    packs_4_bits = True
    backend = 'openvino'

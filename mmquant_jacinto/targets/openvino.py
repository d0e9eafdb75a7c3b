"""OpenVINO. Its own arithmetic is not known here yet: tests compute as ONNX Runtime.

So a file is proven in OpenVINO itself, by its distance to the checkpoint and its score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import QUANT_TARGETS
from .onnxruntime import QdqArithmetic
from .preset import AFFINE, PER_CHANNEL, Preset
from .rules import OPENVINO_RULES
from .target import Target

if TYPE_CHECKING:
    import onnx


@QUANT_TARGETS.register_module(name='openvino')
class OpenVino(Target):
    """S8 weights with a scale for each channel, U8 activations with a zero point."""

    preset = Preset(weight=PER_CHANNEL, activation=AFFINE)
    arithmetic = QdqArithmetic
    backend = 'openvino'
    rules = OPENVINO_RULES

    def finish(self, model: onnx.ModelProto) -> None:
        # Needs the `export` extra, which a training does without.
        from .rewrites.wide_grids import write_out_wide_grids

        write_out_wide_grids(model)

"""OpenVINO. Its own arithmetic is not known here yet: tests compute as ONNX Runtime.

So a file is proven in OpenVINO itself, by its distance to the checkpoint and its score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor

from ..registry import QUANT_TARGETS
from .grid import Grid
from .onnxruntime import QdqArithmetic
from .preset import AFFINE, PER_CHANNEL, Preset
from .rules import OPENVINO_RULES
from .target import Target

if TYPE_CHECKING:
    import onnx


class OpenVinoArithmetic(QdqArithmetic):
    """What OpenVINO 2026.4 computes on x86, with ``INFERENCE_PRECISION_HINT`` f32.

    Sums are exact. Scaled and biased as real numbers they are put on a grid by one
    multiplication and one addition: the plugin's node FakeQuantize, and oneDNN's
    operations behind a convolution. Exponentials are oneDNN's.
    """

    has_real_biases = True

    def multiplier(self, weight_scale: Tensor, given: Grid, grid: Grid) -> Tensor:
        return weight_scale.float() * given.scale

    def scale(
        self,
        total: Tensor,
        multiplier: Tensor,
        given: Grid,
        grid: Grid,
        bias: Tensor | None = None,
    ) -> Tensor:
        real = total.float().mul_(multiplier)
        return self.quantize(real if bias is None else real.add_(bias), grid)

    def quantize(self, x: Tensor, grid: Grid, factor: Tensor | None = None) -> Tensor:
        if grid.levels > 256:
            return super().quantize(x, grid, factor)
        x = x.float()
        ends = torch.tensor(
            [grid.low * grid.scale, (grid.low + 255) * grid.scale], device=x.device
        )
        if factor is None and grid.low == 0:
            # The reciprocal of a reciprocal, which oneDNN multiplies by.
            return x * (255 / (ends[1] - ends[0])).reciprocal().reciprocal()
        if factor is None:
            low, high = ends
            steps = _multiply_add(x, *_line(low, high))
        else:
            low, high = (end / factor.reciprocal() for end in ends)
            scale, shift = _line(low, high)
            # One shift for all channels, that of the first.
            steps = (x * scale).add_(shift.flatten()[0])
        # A tie is rounded to the even stored integer.
        return steps.round_().add_(grid.low)

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        return _FUNCTIONS.get(name)


def _line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """What to multiply by and to add, for a grid of 256 steps: float32."""
    width = high - low
    return 255 / width, (-low * 255) / width


def _multiply_add(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (x.double() * y.double() + z.double()).float()


# Coefficients of the polynomial of ``exp`` in oneDNN's jit_uni_eltwise_injector, of
# the fifth power down.
_EXP = (
    *(0.008289290592074394, 0.04189782217144966, 0.16667652130126953),
    *(0.4999915063381195, 0.9999997019767761, 1.0),
)
_LOG2_E, _LN_2, _LEAST = 1.4426950216293335, 0.6931471824645996, -87.3365478515625


def _exp(x: Tensor) -> Tensor:
    """``exp`` of numbers up to 0, float32."""
    x = x.clamp(min=_LEAST)
    power = (x * _LOG2_E).add_(0.5).floor_()
    rest = (x.double() - power.double() * _LN_2).float()
    total = torch.full_like(x, _EXP[0])
    for coefficient in _EXP[1:]:
        total = (total.double() * rest.double()).add_(coefficient).float()
    return torch.ldexp(total, power)


def _sigmoid(x: Tensor) -> Tensor:
    x = x.float()
    small = _exp(-x.abs())
    small = small / (small + 1)
    return torch.where(x > 0, 1 - small, small)


def _hardswish(x: Tensor) -> Tensor:
    return x * (x * (1 / 6)).add_(0.5).clamp_(0.0, 1.0)


_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    'sigmoid': _sigmoid,
    'silu': lambda x: x * _sigmoid(x),
    'hardswish': _hardswish,
}


@QUANT_TARGETS.register_module(name='openvino')
class OpenVino(Target):
    """S8 weights with a scale for each channel, U8 activations with a zero point."""

    preset = Preset(weight=PER_CHANNEL, activation=AFFINE, calibration_observer='mse')
    arithmetic = OpenVinoArithmetic
    backend = 'openvino'
    rules = OPENVINO_RULES

    def finish(self, model: onnx.ModelProto) -> None:
        # Needs the `export` extra, which a training does without.
        from .rewrites.wide_grids import write_out_wide_grids

        write_out_wide_grids(model)

"""OpenVINO: its arithmetic on x86, measured operator by operator.

Sources: the plugin's graphs (``OV_ENABLE_SERIALIZE_TRACING``) of OpenVINO 2026.4, and
its results where ties are frequent (``tests/targets/test_openvino_arithmetic.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor

from ..registry import QUANT_TARGETS
from .fixed_point import MEAN, RESIZE
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
        total = total.float()
        if grid.levels > 256:
            real = total * multiplier
            return super().quantize(real if bias is None else real + bias, grid)
        if bias is None:
            # The plugin divides the ends of the grid instead.
            low, high = _ends(grid, total)
            return _on_lines(total, low / multiplier, high / multiplier, grid)
        real = total.mul_(multiplier).add_(bias)
        return self.quantize(real, grid, behind_layer=True)

    def quantize(
        self,
        x: Tensor,
        grid: Grid,
        factor: Tensor | None = None,
        behind_layer: bool = False,
    ) -> Tensor:
        if grid.levels > 256:
            return super().quantize(x, grid, factor)
        x = x.float()
        low, high = _ends(grid, x, factor)
        place = _behind_layer if behind_layer else _in_subgraph
        return place(x, low, high, grid)

    def add_real(
        self,
        real: Tensor,
        x: Tensor,
        given: Grid,
        grid: Grid,
        factor: Tensor | None = None,
        is_only_reader: bool = False,
        pair: Grid | None = None,
    ) -> Tensor:
        if max(given.levels, grid.levels) > 256:
            return super().add_real(real, x, given, grid, factor)
        # The layer's part in steps of the other.
        step = torch.tensor(given.scale, device=real.device)
        if pair is not None:
            total = _through_pair(real, step, given, pair).add_(x - given.low)
            low, high = (end / step for end in _ends(grid, real, factor))
            return _behind_layer(total, low, high, grid)
        if given.low != 0:
            real = real + given.low * step
        total = real * _twice_inverted(step.reciprocal()) + (x - given.low)
        low, high = (end / step for end in _ends(grid, real, factor))
        # The layer adds to the other's memory, if nobody else needs it.
        place = _behind_layer if is_only_reader else _in_subgraph
        return place(total, low, high, grid)

    def pair_in_sum(
        self, given: Grid, grid: Grid, factor: Tensor | None = None
    ) -> Grid | None:
        if max(given.levels, grid.levels) > 256:
            return None
        # What lies beyond shows in no sum: it would be at an end of the grid anyway.
        reach = 1.0 if factor is None else float(factor.max())
        ends = (
            grid.low * reach * grid.scale - given.high * given.scale,
            grid.high * reach * grid.scale - given.low * given.scale,
        )
        steps = max(map(abs, ends)) / given.scale + 1
        # Of a power of two times the other's step, so that little is rounded.
        scale = given.scale * 2 ** max(0, math.ceil(math.log2(steps / 127)))
        return Grid(scale, -128, 127, 256, grid.rounding)

    def add(
        self,
        x: Tensor,
        y: Tensor,
        first: Grid,
        second: Grid,
        grid: Grid,
        second_leads: bool = False,
    ) -> Tensor:
        if max(first.levels, second.levels, grid.levels) > 256:
            return super().add(x, y, first, second, grid)
        if second_leads:
            x, y, first, second = y, x, second, first
        # Both zero points and the ratio of the scales are what a fake quantization of
        # the layer's result gives: of 0 and of 255 stored integers.
        scales = [first.scale, second.scale]
        one, other = torch.tensor(scales, dtype=torch.float32, device=x.device)
        ratio = one / other
        zero = -first.low - other * second.low / one
        low, high = -zero * ratio, (255 - zero) * ratio
        stored = (x - first.low).double()
        total = (stored * ((high - low) / 255).double() + low.double()).float()
        least, most = (end / other for end in _ends(grid, x))
        return _behind_layer(total + (y - second.low), least, most, grid)

    def average(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        given: Grid,
        grid: Grid,
        kind: str,
    ) -> Tensor:
        if max(given.levels, grid.levels) > 256:
            return super().average(function, x, given, grid, kind)
        if kind == RESIZE:
            # Of real numbers; the quantization is part of the node.
            return self.quantize(function(x * given.scale), grid, behind_layer=True)
        low, high = (end / given.scale for end in _ends(grid, x))
        if kind == MEAN:
            return _in_subgraph(function(x), low, high, grid)
        # Of stored integers; their zero point is part of the quantization behind.
        scale = _scale(low, high)
        shift = _shift(low, high) + given.low * scale
        stored = function(x - given.low)
        steps = stored.double() * scale.double() + shift.double()
        return steps.float().round_().add_(grid.low)

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        return _FUNCTIONS.get(name)


def _ends(grid: Grid, x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ends of a grid of 256 steps, on ``x``'s device, float32."""
    ends = [grid.low * grid.scale, (grid.low + 255) * grid.scale]
    low, high = torch.tensor(ends, dtype=torch.float32, device=x.device)
    if factor is None:
        return low, high
    return low / factor.reciprocal(), high / factor.reciprocal()


def _scale(low: Tensor, high: Tensor) -> Tensor:
    # Of a Python number torch would make a product with the reciprocal.
    width = high - low
    return torch.full_like(width, 255) / width


def _shift(low: Tensor, high: Tensor) -> Tensor:
    return (-low * 255) / (high - low)


def _behind_layer(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """By oneDNN, as part of a layer."""
    if low.dim() > 0:
        return _on_lines(x, low, high, grid)
    if grid.low == 0:
        # The reciprocal of a reciprocal is what it multiplies by.
        return x * _twice_inverted(_scale(low, high))
    shift = _shift(low, high)
    steps = x.double() * _scale(low, high).double() + shift.double()
    # A tie goes to the even stored integer.
    return steps.float().round_().add_(grid.low)


def _through_pair(real: Tensor, step: Tensor, given: Grid, pair: Grid) -> Tensor:
    """A layer's part of a sum, clamped by a pair that rounds nothing.

    In steps of the other operand, less its zero point. The plugin makes one
    multiplication and one addition of the ends of the pair's grid and of those that the
    other's step and zero point make of them.
    """
    low, high = _ends(pair, real)
    times = float(pair.scale / given.scale)
    shift = _shift(low, high) * times + (pair.low * times + given.low)
    # What is next to nothing is nothing to the plugin.
    shift = torch.where(shift.abs() < 255 * times * 1e-5, 0.0, shift)
    scale = _scale(low, high) * times
    total = (real.double() * scale.double() + shift.double()).float()
    return total.clamp_(pair.low * times + given.low, pair.high * times + given.low)


def _on_lines(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """By a multiplication for each channel behind a layer, and one addition."""
    shift = _shift(low, high).flatten()[0]
    # A tie goes to the even stored integer.
    return (x * _scale(low, high)).add_(shift).round_().add_(grid.low)


def _in_subgraph(x: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """By the plugin's own code for what is elementwise."""
    scale = _scale(low, high)
    steps = x.clamp(low, high).mul_(scale).sub_(low * scale)
    return steps.round_().add_(grid.low)


def _twice_inverted(x: Tensor) -> Tensor:
    return x.reciprocal().reciprocal()


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

    preset = Preset(
        weight=PER_CHANNEL, activation=AFFINE, calibration_observer='minmax'
    )
    arithmetic = OpenVinoArithmetic
    backend = 'openvino'
    rules = OPENVINO_RULES

    def finish(self, model: onnx.ModelProto) -> None:
        # Needs the `export` extra, which a training does without.
        from .rewrites.space_to_depth import convolve_at_once
        from .rewrites.strided_points import pool_strided_points
        from .rewrites.wide_grids import write_out_wide_grids

        convolve_at_once(model)
        pool_strided_points(model)
        write_out_wide_grids(model)

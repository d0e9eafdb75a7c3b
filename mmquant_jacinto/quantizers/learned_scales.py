"""Learned scales: the steps of all grids as parameters of the training.

Learned step size quantization (LSQ, Esser et al., arXiv 1902.08153), with a learned
zero point for affine grids (in place of LSQ+'s real offset, Bhalgat et al., arXiv
2004.09576: no integer engine has one). What is learned of a step is the logarithm of
a factor on what a range or a weight gave (as in TQT, Jain et al., arXiv 1903.08066),
so one learning rate fits steps of any size.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..plan.plan import ActivationSpec, WeightSpec
from ..targets.formats import HALF_AWAY, HALF_UP, TensorFormat, integer_bounds
from ..targets.grid import Bounds, Grid, round_tensor
from .kernels import native

_LOG_2 = math.log(2.0)


def factor_of(log2: Tensor, power_of_two: Tensor) -> Tensor:
    """The factor on a step; a whole power of two where the format asks for it."""
    return torch.where(power_of_two, log2.round(), log2).exp2()


class LearnedActivationScales(nn.Module):
    """What is learned of the grids of Q activation quantizers.

    Args:
        specs (Sequence[ActivationSpec]): The quantizers.

    Attributes:
        log2_scale (nn.Parameter): Of the factor on each step: (Q,).
        zero_point (nn.Parameter, optional): What is added to the zero points of
            affine grids: (Q,). None where there is none.
    """

    _power_of_two: Tensor
    _moves: Tensor

    def __init__(self, specs: Sequence[ActivationSpec]) -> None:
        super().__init__()
        formats = [spec.format for spec in specs]
        # A tensor that is never negative has its zero at the end of its grid.
        self.is_affine = [
            not f.symmetric and not s.positive for f, s in zip(formats, specs)
        ]
        self.log2_scale = nn.Parameter(torch.zeros(len(specs)))
        self.zero_point = (
            nn.Parameter(torch.zeros(len(specs))) if any(self.is_affine) else None
        )
        powers = torch.tensor([f.power_of_two for f in formats])
        self.register_buffer('_power_of_two', powers, persistent=False)
        moves = torch.tensor(self.is_affine)
        self.register_buffer('_moves', moves, persistent=False)

    @torch.no_grad()
    def adjust(
        self, scale: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, lowest and highest step of the learned grids.

        Args:
            scale (Tensor): Of the initial grids, float64: (Q,).
            low (Tensor): Their lowest steps: (Q,).
            high (Tensor): Their highest steps: (Q,).

        Returns:
            Tuple[Tensor, Tensor, Tensor]: As the arguments.
        """
        device = scale.device
        log2 = self.log2_scale.to(device).double()
        factor = factor_of(log2, self._power_of_two.to(device))
        # Engines hold scales in float32.
        learned = (scale * factor).float().double()
        if self.zero_point is None:
            return learned, low, high
        span = high - low
        moved = low - self.zero_point.to(device).round()
        moved = torch.minimum(moved, torch.zeros_like(moved)).maximum(-span)
        moved = torch.where(self._moves.to(device), moved, low)
        return learned, moved, moved + span


class LearnedWeightScales(nn.Module):
    """What is learned of the grids of all weights: one factor for each scale.

    Args:
        specs (Mapping[str, WeightSpec]): The weight quantizers.

    Attributes:
        log2_scale (nn.Parameter): Of the factor on each step: (E,), one for each
            channel of per-channel formats, one for the tensor otherwise.
    """

    _index: Tensor
    _power_of_two: Tensor

    def __init__(self, specs: Mapping[str, WeightSpec]) -> None:
        super().__init__()
        index: list[Tensor] = []
        power_of_two: list[bool] = []
        self._places: dict[str, slice] = {}
        start = 0
        for name, spec in specs.items():
            size = spec.channels if spec.format.per_channel else 1
            place = torch.arange(start, start + size)
            index.append(place.expand(spec.channels) if size == 1 else place)
            power_of_two += [spec.format.power_of_two] * size
            self._places[name] = slice(start, start + size)
            start += size
        self.log2_scale = nn.Parameter(torch.zeros(start))
        self.register_buffer('_index', torch.cat(index), persistent=False)
        powers = torch.tensor(power_of_two)
        self.register_buffer('_power_of_two', powers, persistent=False)

    @torch.no_grad()
    def factors(self) -> Tensor:
        """The factor on the step of each channel of all layers: (C,)."""
        # In float64: what devices call the power of two in float32 differs in a bit.
        log2 = self.log2_scale.double()
        return factor_of(log2, self._power_of_two).float()[self._index]

    def place(self, name: str) -> slice:
        """Where the factors of a weight quantizer are among all."""
        return self._places[name]


class _LearnedQuantize(torch.autograd.Function):
    """Fake quantization that knows what its step and its zero point are worth."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log2_scale: Tensor,
        zero_point: Optional[Tensor],
        index: int,
        grid: Grid,
        limits: tuple,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.index, ctx.grid, ctx.limits = index, grid, limits
        ctx.size, ctx.moves = len(log2_scale), zero_point is not None
        out = torch.clamp(x, *limits)
        return round_tensor(out.div_(grid.scale), grid.rounding).mul_(grid.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        grid = ctx.grid
        to_x, to_step, clipped = _gradients(x, grad, grid, ctx.limits)
        # As in LSQ: gradients of steps are sums over many elements.
        share = (max(1, math.prod(x.shape[1:])) * grid.levels / 2) ** -0.5
        scales = grad.new_zeros(ctx.size)
        scales[ctx.index] = to_step * (grid.scale * _LOG_2 * share)
        zero_points = None
        if ctx.moves:
            zero_points = grad.new_zeros(ctx.size)
            zero_points[ctx.index] = clipped * (-grid.scale * share)
        return to_x, scales, zero_points, None, None, None


def _gradients(
    x: Tensor, grad: Tensor, grid: Grid, limits: tuple
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the input, of the step, and the sum of those that the grid clips.

    With ``v`` the value in steps, the step's is ``round(v) - v`` inside the grid,
    and the grid's end where that clips.
    """
    low, high = grid.low * grid.scale, grid.high * grid.scale
    on_host = not isinstance(low, Tensor) and grid.rounding != HALF_AWAY
    if on_host and native.takes(x) and native.takes(grad):
        if x.stride() == grad.stride():
            half_up = grid.rounding == HALF_UP
            ends = (low, high, grid.low, grid.high)
            return native.learned_gradient(x, grad, grid.scale, limits, ends, half_up)
    value = torch.clamp(x, *limits)
    below, above = x < low, x > high
    # The grid's end is not the last where a fused activation clips before it.
    below, above = below & (value <= low), above & (value >= high)
    steps = value.div_(grid.scale)
    factor = round_tensor(steps.clone(), grid.rounding).sub_(steps)
    factor = torch.where(below, grid.low, torch.where(above, grid.high, factor))
    inside = (x > limits[0]) & (x < limits[1])
    return grad * inside, (grad * factor).sum(), (grad * (below | above)).sum()


def learned_quantize(
    x: Tensor,
    grid: Grid,
    bounds: Bounds,
    scales: LearnedActivationScales,
    index: int,
) -> Tensor:
    """Fake-quantizes on a grid whose step is learned.

    Args:
        x (Tensor): (N, ...), floating point.
        grid (Grid): The present grid, learned factors included.
        bounds (tuple, optional): Real ``(low, high)`` of a fused activation.
        scales (LearnedActivationScales): What gets the gradients.
        index (int): Which of its quantizers.

    Returns:
        Tensor: Shape and dtype of ``x``.
    """
    zero_point = scales.zero_point if scales.is_affine[index] else None
    out = _LearnedQuantize.apply(
        x.float(), scales.log2_scale, zero_point, index, grid, grid.limits(bounds)
    )
    return out.to(x.dtype)


class _LearnedWeight(torch.autograd.Function):
    """Puts a weight on a grid whose steps are learned."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        step: Tensor,
        log2_scale: Tensor,
        place: slice,
        fmt: TensorFormat,
    ) -> Tensor:
        ctx.save_for_backward(rows, step)
        ctx.size, ctx.place, ctx.format = len(log2_scale), place, fmt
        low, high = integer_bounds(fmt)
        return (rows / step).round_().clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        rows, step = ctx.saved_tensors
        low, high = integer_bounds(ctx.format)
        steps = rows / step
        inside = (steps >= low) & (steps <= high)
        factor = steps.round().clamp_(low, high).sub_(steps.mul_(inside))
        # In terms of the logarithm: the step's sign, which a negative factor of
        # batch normalization gives it, cancels.
        to_scale = (grad * factor * step).sum(1) * _LOG_2
        per_scale = rows.numel()
        if ctx.format.per_channel:
            per_scale //= len(rows)
        else:
            to_scale = to_scale.sum(0, keepdim=True)
        scales = grad.new_zeros(ctx.size)
        scales[ctx.place] = to_scale * (per_scale * max(high, 1)) ** -0.5
        return grad * inside, None, scales, None, None


def learned_weight(
    rows: Tensor,
    step: Tensor,
    scales: LearnedWeightScales,
    name: str,
    fmt: TensorFormat,
) -> Tensor:
    """Fake-quantizes a weight on a grid whose steps are learned.

    Args:
        rows (Tensor): The weight, a row for each output channel: (C, n).
        step (Tensor): Present step of each row, may be negative: (C,).
        scales (LearnedWeightScales): What gets the gradients.
        name (str): The weight quantizer.
        fmt (TensorFormat): The weight's format.

    Returns:
        Tensor: (C, n).
    """
    return _LearnedWeight.apply(
        rows, step[:, None], scales.log2_scale, scales.place(name), fmt
    )

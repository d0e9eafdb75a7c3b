"""Grids: the integers that a quantized tensor may take, and how values get there."""

from functools import lru_cache
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .formats import HALF_AWAY, HALF_EVEN, HALF_UP

# Real (low, high) of an activation that is fused into a quantizer; None is open.
Bounds = Optional[tuple[Optional[float], Optional[float]]]
# Python's number or a tensor of no dimension: whoever computes with a grid knows which
# it is, from where the grid came; a type checker does not.
Number = Any


class Grid(NamedTuple):
    """A tensor's quantization grid: ``scale * k`` for ``low <= k <= high``.

    ``k`` is the stored integer less the zero point, so zero is always on the
    grid and the arithmetic needs no zero point. The numbers are Python's on
    a CPU and tensors of no dimension on an accelerator.

    Args:
        scale (float | Tensor): Step of the grid.
        low (int | Tensor): Smallest ``k``; minus the zero point of unsigned
            storage.
        high (int | Tensor): Largest ``k``.
        levels (int): Number of ``k``, two to the power of the bits.
        rounding (str): One of :data:`~mmquant_jacinto.targets.formats.ROUNDINGS`.
    """

    scale: Number
    low: Number
    high: Number
    levels: int
    rounding: str

    def limits(self, bounds: Bounds) -> tuple:
        """Real limits of the grid, tightened by a fused activation's."""
        low, high = self.low * self.scale, self.high * self.scale
        if bounds is not None:
            above, below = bounds
            if above is not None:
                low = (
                    low.clamp(min=above) if isinstance(low, Tensor) else max(low, above)
                )
            if below is not None:
                high = (
                    high.clamp(max=below)
                    if isinstance(high, Tensor)
                    else min(high, below)
                )
        return low, high

    def integer_limits(self, bounds: Bounds) -> tuple[int, int]:
        """The same limits in steps of the grid (Python numbers only)."""
        return _integer_limits(self, bounds)


@lru_cache(maxsize=4096)
def _integer_limits(grid: Grid, bounds: Bounds) -> tuple[int, int]:
    limits = torch.tensor(grid.limits(bounds), dtype=torch.float64)
    low, high = round_tensor(limits / grid.scale, grid.rounding).tolist()
    return int(low), int(high)


def round_tensor(x: Tensor, rounding: str) -> Tensor:
    """Rounds ``x`` to integers, in place.

    Args:
        x (Tensor): Any shape, floating point; overwritten.
        rounding (str): One of :data:`~mmquant_jacinto.targets.formats.ROUNDINGS`.

    Returns:
        Tensor: ``x``.
    """
    if rounding == HALF_EVEN:
        return x.round_()
    if rounding == HALF_UP:
        return x.add_(0.5).floor_()
    assert rounding == HALF_AWAY
    return x.copy_(x.abs().add_(0.5).floor_().copysign_(x))


def divisor(number: float, x: Tensor) -> Number:
    """A number to divide ``x`` by, so that the quotient is rounded once.

    On a GPU torch multiplies by the inverse of a Python number, which rounds twice.
    """
    if not x.is_cuda:
        return number
    return torch.full((), number, dtype=x.dtype, device=x.device)


def inverse_root(x: Tensor) -> Tensor:
    """``1 / sqrt(x)``, rounded twice on every device: (float32).

    A GPU's ``rsqrt`` is off by a bit, and so is the ``sqrt`` of a CPU.
    """
    return x.sqrt().reciprocal_() if x.is_cuda else x.rsqrt()

"""From ranges to grids: scale and ends of all activation quantizers at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..targets.formats import TensorFormat

# A tensor that is all zero still needs a scale.
SMALLEST_RANGE = 2.0**-24


def power_of_two_above(x: Tensor) -> Tensor:
    """The least power of two that is not below ``x``.

    Exact, and cheap for the many small tensors it is called on: a carry out
    of the mantissa's bits moves the exponent up unless they are all zero.

    Args:
        x (Tensor): Positive normal numbers, float32 or float64.

    Returns:
        Tensor: Shape and dtype of ``x``.
    """
    if x.dtype == torch.float64:
        integer, mantissa = torch.int64, (1 << 52) - 1
    else:
        integer, mantissa = torch.int32, (1 << 23) - 1
    return (x.view(integer) + mantissa).bitwise_and_(~mantissa).view(x.dtype)


class GridFormats(NamedTuple):
    """What the formats of Q quantizers say, as tensors: (Q,) each.

    Args:
        levels (Tensor): Number of integers, float64.
        symmetric (Tensor): See :class:`~mmquant_jacinto.targets.formats.TensorFormat`.
        power_of_two (Tensor): Likewise.
        unsigned_if_positive (Tensor): Likewise.
    """

    levels: Tensor
    symmetric: Tensor
    power_of_two: Tensor
    unsigned_if_positive: Tensor

    @classmethod
    def of(cls, formats: Sequence[TensorFormat]) -> GridFormats:
        """Those of formats, on the CPU."""

        def column(values: Iterable, dtype: torch.dtype) -> Tensor:
            return torch.tensor(list(values), dtype=dtype, device='cpu')

        return cls(
            column((2.0**f.bits for f in formats), torch.float64),
            column((f.symmetric for f in formats), torch.bool),
            column((f.power_of_two for f in formats), torch.bool),
            column((f.unsigned_if_positive for f in formats), torch.bool),
        )

    def to(self, device: torch.device) -> GridFormats:
        """The formats on a device."""
        return GridFormats(*(column.to(device) for column in self))

    def rows(self, rows: Any) -> GridFormats:
        """The formats of some of the quantizers, by any index of a tensor."""
        return GridFormats(*(column[rows] for column in self))

    def grids(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Grids that cover ranges.

        Args:
            low (Tensor): Lower ends: (Q,).
            high (Tensor): Upper ends: (Q,).

        Returns:
            Tuple[Tensor, Tensor, Tensor]: Scale, lowest and highest step,
            float64: (Q,) each.
        """
        levels, symmetric, power, unsigned = self
        low = low.double().clamp(max=0)
        high = high.double().clamp(min=0)
        unsigned = unsigned & (low >= 0)
        # Any scale holds what is all zero; a tiny one would leave no room for the
        # biases of the layers that read it.
        is_zero = (low == 0) & (high == 0)
        high = torch.where(is_zero, torch.ones_like(high), high)
        reach = torch.maximum(-low, high).clamp(min=SMALLEST_RANGE)
        reach = torch.where(power, power_of_two_above(reach), reach)
        # A power-of-two range is a whole number of steps; another range has
        # its end on the grid.
        steps = torch.where(unsigned, levels, levels / 2)
        steps = torch.where(power, steps, steps - 1)
        span = (high - low).clamp(min=SMALLEST_RANGE)
        scale = torch.where(symmetric, reach / steps, span / (levels - 1))
        # Engines hold scales in float32; so does everything here.
        scale = scale.float().double()
        zero = torch.where(unsigned, torch.zeros_like(levels), levels / 2)
        zero = torch.where(symmetric, zero, (-low / scale).round())
        return scale, -zero, levels - 1 - zero

"""Histograms of activations, mergeable exactly over calls and processes.

Bins are between multiples of a power of two, and so are those of a histogram whose
range has doubled: each new bin is two old ones. A histogram therefore depends on
what was counted alone, not on its order, nor on which process counted it.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.distributed as dist
from torch import Tensor

from ..observers import is_distributed
from .extremes import Observation

# At least half of them are in use, on one side of zero at least a quarter: four for
# each step of an 8-bit grid, and more for each that a search then discards.
BINS = 4096
# Of an empty histogram; all shifts from here stay in the range of floats.
MIN_EXPONENT = -100


class Histograms:
    """One histogram for each of Q quantizers.

    Zeros are not counted: they are exact on every grid, and so many behind a
    ReLU that they would hide the rest.

    Args:
        positive (Sequence[bool]): For each quantizer, whether negative
            elements are to be ignored.

    Attributes:
        counts (Tensor): int64: (Q, BINS).
        ends (Tensor): Largest of the negated elements, and of the elements:
            (Q, 2), minus infinity where nothing was seen.
    """

    def __init__(self, positive: Sequence[bool]) -> None:
        self.positive = list(positive)
        size = len(self.positive)
        self.counts = torch.zeros(size, BINS, dtype=torch.int64)
        self.ends = torch.full((size, 2), -torch.inf)
        self.exponents = torch.full((size,), MIN_EXPONENT)
        # The bin above zero.
        self.origins = torch.tensor([0 if p else BINS // 2 for p in self.positive])

    @property
    def widths(self) -> Tensor:
        """Tensor: Width of the bins, a power of two: (Q,)."""
        # log2(BINS) of them in the range, or half as many on either side.
        exponents = self.exponents - BINS.bit_length() + 1 + (self.origins > 0)
        # By its bits: a general power is not exact.
        return ((exponents + 127).int() << 23).view(torch.float32)

    @property
    def centers(self) -> Tensor:
        """Tensor: Middles of the bins: (Q, BINS)."""
        bins = torch.arange(BINS, device=self.counts.device) + 0.5
        return (bins - self.origins[:, None]) * self.widths[:, None]

    def add(
        self, observations: Sequence[Observation], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Counts what all processes have observed in a step.

        What has NaN or infinity in it, on any process, is left out. Every
        process must call it equally often.

        Args:
            observations (Sequence[Observation]): In any order.
            device (torch.device): Where they are.

        Returns:
            Tuple[Tensor, Tensor]: Quantizers that were seen, and those of them
            that were counted, bool: (Q,) each.
        """
        self._move(device)
        parts = [
            (item.quantizer, weight, _clamped(x, item.clip, self._is_positive(item)))
            for item in observations
            for x, weight in ((item.sample, item.weight), (item.extremes, 1))
            if x is not None
        ]
        ends = torch.full_like(self.ends, -torch.inf)
        for index, _, x in parts:
            low, high = x.aminmax()
            found = torch.stack([-low, high]).nan_to_num(torch.inf, torch.inf)
            row = ends[index]
            torch.maximum(row, found, out=row)
        if is_distributed():
            dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        seen = ends[:, 1] > -torch.inf
        counted = seen & (ends < torch.inf).all(1)
        self.ends = torch.where(
            counted[:, None], torch.maximum(self.ends, ends), self.ends
        )
        self._widen()
        step = torch.zeros_like(self.counts)
        widths = self.widths
        for index, weight, x in parts:
            # A product with a power of two: exact, as the bins' edges are.
            bins = (x * (1 / widths[index])).floor_() + self.origins[index]
            bins = bins.nan_to_num_(0.0).clamp_(0, BINS - 1).long()
            keep = (x != 0) & counted[index]
            step[index].scatter_add_(0, bins, keep.long() * weight)
        if is_distributed():
            dist.all_reduce(step)
        self.counts += step
        return seen, counted

    def _is_positive(self, item: Observation) -> bool:
        return self.positive[item.quantizer]

    def _move(self, device: torch.device) -> None:
        for name in ('counts', 'ends', 'exponents', 'origins'):
            setattr(self, name, getattr(self, name).to(device))

    def _widen(self) -> None:
        """Doubles ranges until all that was seen is below their ends."""
        reach = self.ends.amax(1)
        # 2 ** exponent is above the number, never equal to it.
        exponents = torch.frexp(reach.clamp(min=2.0**MIN_EXPONENT)).exponent.long()
        exponents = torch.maximum(exponents, self.exponents)
        shifts = exponents - self.exponents
        self.exponents = exponents
        if not shifts.any():
            return
        bins = torch.arange(BINS, device=shifts.device) - self.origins[:, None]
        moved = (bins >> shifts.clamp(max=62)[:, None]) + self.origins[:, None]
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, moved, self.counts)


def _clamped(sample: Tensor, clip: Optional[tuple], positive: bool) -> Tensor:
    """A sample within the bounds of a fused activation."""
    low, high = clip or (None, None)
    if positive:
        low = max(low or 0.0, 0.0)
    if low is None and high is None:
        return sample
    return sample.clamp(low, high)

"""What tensors look like beside their grids, gathered on the device, read once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...quantizers.activations import ActivationQuantizers
from ..content import ActivationReport, Histogram
from .formats import describe_format

BINS = 40
# Elements that a histogram counts: of 40 bins a tenth each is known to some percent.
COUNTED = 2**12
# Runs whose channels are looked at together.
AT_ONCE = 512
# Elements further than this from the grid's end, in steps, are clipped, not rounded.
BEYOND = 0.5


def thinned(values: Tensor) -> Tensor:
    """At most about :data:`COUNTED` elements, evenly spread: (n,) of (N,)."""
    # An odd stride shares no factor with what the elements are laid out by.
    stride = -(-len(values) // COUNTED) | 1 if len(values) > COUNTED else 1
    return values[::stride]


def count_bins(pair: Sequence[Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Elements in bins of equal width, without asking the host: (2, BINS).

    Args:
        pair (Sequence[Tensor]): Two of (n,), of which a part is counted.
        low (Tensor): Lower edge of the first bin, ().
        high (Tensor): Upper edge of the last one, ().
    """
    values = torch.stack([thinned(item) for item in pair]).float()
    place = (values - low).mul_(BINS / (high - low).clamp(min=1e-30))
    place = place.nan_to_num_(0.0).clamp_(0, BINS - 1).long()
    place[1].add_(BINS)
    counts = torch.zeros(2 * BINS, device=values.device)
    ones = torch.ones_like(values)
    return counts.scatter_add_(0, place.view(-1), ones.view(-1)).view(2, BINS)


def reach_of_channels(x: Tensor) -> Tensor:
    """Largest magnitude in each channel: of maps along axis 1, else the last: (C,)."""
    axis = 1 if x.dim() > 3 else x.dim() - 1
    axes = [d for d in range(x.dim()) if d != axis]
    x = x.detach().abs().float()
    return x.amax(axes) if axes else x


class ActivationStatistics:
    """Of all measured tensors.

    Args:
        activations (ActivationQuantizers): Their ranges and grids.
    """

    def __init__(self, activations: ActivationQuantizers) -> None:
        self.activations = activations
        self.quantizer_of: dict[str, str] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._reach: dict[str, list[Tensor]] = {}
        self._bins: dict[str, tuple[Tensor, Tensor]] = {}

    def add(
        self, name: str, quantizer: str, x: Tensor, values: Tensor, quantized: Tensor
    ) -> None:
        """Notes a tensor.

        Args:
            name (str): The step.
            quantizer (str): What puts it on its grid.
            x (Tensor): The tensor in float.
            values (Tensor): A sample of it: (n,).
            quantized (Tensor): The same elements on the grid: (n,).
        """
        reach = reach_of_channels(x)
        low, high = values.aminmax()
        grid = self.activations.grid(quantizer)
        clipped = values.new_zeros(())
        if grid is not None and self.activations.factor(quantizer) is None:
            first, last = grid.limits(None)
            room = grid.scale * BEYOND
            clipped = (values.clamp(first - room, last + room) != values).float().mean()
        square = values.dot(values) / len(values)
        row = torch.stack([low, high, clipped, square])
        self._rows.setdefault(name, []).append(row)
        self._reach.setdefault(name, []).append(reach)
        self.quantizer_of[name] = quantizer
        if name not in self._bins:
            self._bins[name] = row[:2], count_bins((values, quantized), low, high)

    def reports(self) -> dict[str, ActivationReport]:
        """By step, in the order in which they ran."""
        if not self._rows:
            return {}
        runs = [row for rows in self._rows.values() for row in rows]
        counted = [len(rows) for rows in self._rows.values()]
        reaches = [reach for found in self._reach.values() for reach in found]
        table = torch.cat([torch.stack(runs), channel_numbers(reaches)], 1)
        owner = torch.arange(len(counted)).repeat_interleave(torch.tensor(counted))
        merged = _merged(table, owner.to(table.device), len(counted))
        spans, bins = (
            torch.stack(list(items)).tolist() for items in zip(*self._bins.values())
        )
        found = {}
        for name, row, span, counts in zip(self._rows, merged.tolist(), spans, bins):
            parts = ([int(count) for count in part] for part in counts)
            found[name] = self._report(name, row, Histogram(*span, *parts))
        return found

    def _report(
        self, name: str, row: list[float], histogram: Histogram
    ) -> ActivationReport:
        quantizer = self.quantizer_of[name]
        spec = self.activations.specs[self.activations.index[quantizer]]
        low, high, clipped, square, zero, reach, median = row
        scale, ends = 0.0, (0.0, 0.0)
        if self.activations.has_range(quantizer):
            grid = self.activations.host_grid(quantizer)
            scale, ends = grid.scale, (grid.low * grid.scale, grid.high * grid.scale)
        return ActivationReport(
            name=quantizer,
            bits=spec.format.bits,
            format=describe_format(spec.format),
            scale=scale,
            range=list(ends),
            seen=[low, high],
            clipped=clipped,
            bits_used=_bits_between(max(low, ends[0]), min(high, ends[1]), scale),
            zero_channels=int(zero),
            channels=len(self._reach[name][-1]),
            tail=max(-low, high) / square**0.5 if square > 0 else 0.0,
            spread=reach / median if median > 0 else 0.0,
            histogram=histogram,
        )


def channel_numbers(reaches: Sequence[Tensor]) -> Tensor:
    """Zero channels, and the largest and the median reach, of runs: (N, 3).

    Args:
        reaches (Sequence[Tensor]): Of the channels of each, (C,).
    """
    found = []
    for start in range(0, len(reaches), AT_ONCE):
        part = list(reaches[start : start + AT_ONCE])
        last = torch.tensor([len(reach) - 1 for reach in part], device=part[0].device)
        rows = pad_sequence(part, batch_first=True, padding_value=torch.inf)
        places = torch.stack([last, last // 2], 1)
        ordered = rows.sort(1).values.gather(1, places)
        zero = (rows == 0).sum(1, keepdim=True).to(rows.dtype)
        found.append(torch.cat([zero, ordered], 1))
    return torch.cat(found)


def _merged(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Several runs of a step as one: (count, 7) of (N, 7)."""
    ways = ('amin', 'amax', 'mean', 'mean', 'amin', 'amax', 'mean')
    columns = [
        rows.new_zeros(count).scatter_reduce_(0, owner, column, way, include_self=False)
        for way, column in zip(ways, rows.unbind(1))
    ]
    return torch.stack(columns, 1)


def _bits_between(low: float, high: float, scale: float) -> float:
    """Bits that number the grid's points from ``low`` to ``high``."""
    if not scale or not high > low:
        return 0.0
    return math.log2((high - low) / scale + 1)

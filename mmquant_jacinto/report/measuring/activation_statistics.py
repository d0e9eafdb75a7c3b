"""What tensors look like beside their grids, gathered on the device, read once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...quantizers.activations import ActivationQuantizers
from ..content import ActivationReport, Histogram
from .formats import describe_format

BINS = 40
# Elements that a histogram counts: of 40 bins a tenth each is known to some percent.
COUNTED = 2**12
# Elements further than this from the grid's end, in steps, are clipped, not rounded.
BEYOND = 0.5


def thinned(values: Tensor) -> Tensor:
    """At most about :data:`COUNTED` elements, evenly spread: (n,) of (N,)."""
    # An odd stride shares no factor with what the elements are laid out by.
    stride = -(-len(values) // COUNTED) | 1 if len(values) > COUNTED else 1
    return values[::stride]


def count_bins(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Elements in bins of equal width, without asking the host: (BINS,).

    Args:
        values (Tensor): (n,).
        low (Tensor): Lower edge of the first bin, ().
        high (Tensor): Upper edge of the last one, ().
    """
    place = (values - low) * (BINS / (high - low).clamp(min=1e-30))
    place = place.nan_to_num(0.0).clamp(0, BINS - 1).long()
    ones = torch.ones_like(values)
    return torch.zeros(BINS, device=values.device).scatter_add_(0, place, ones)


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
        self._bins: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._channels: dict[str, int] = {}

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
        zero = (reach == 0).sum().float()
        row = torch.stack(
            [
                low,
                high,
                clipped,
                values.dot(values) / len(values),
                zero,
                reach.amax(),
                reach.median(),
            ]
        )
        self._rows.setdefault(name, []).append(row)
        self.quantizer_of[name] = quantizer
        self._channels[name] = len(reach)
        if name not in self._bins:
            span = torch.stack([low, high])
            counts = [
                count_bins(thinned(item), low, high) for item in (values, quantized)
            ]
            self._bins[name] = (span, counts[0], counts[1])

    def reports(self) -> dict[str, ActivationReport]:
        """By step, in the order in which they ran."""
        if not self._rows:
            return {}
        table = torch.stack(
            [_merged(torch.stack(rows)) for rows in self._rows.values()]
        )
        spans, counts, quantized = (
            torch.stack([item[place] for item in self._bins.values()]).tolist()
            for place in range(3)
        )
        found = {}
        for index, (name, row) in enumerate(zip(self._rows, table.tolist())):
            low, high = spans[index]
            histogram = Histogram(
                low,
                high,
                [int(count) for count in counts[index]],
                [int(count) for count in quantized[index]],
            )
            found[name] = self._report(name, row, histogram)
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
            channels=self._channels[name],
            tail=max(-low, high) / square**0.5 if square > 0 else 0.0,
            spread=reach / median if median > 0 else 0.0,
            histogram=histogram,
        )


def _merged(rows: Tensor) -> Tensor:
    """Several runs of a step as one: (7,)."""
    low, high, clipped, square, zero, reach, median = rows.unbind(1)
    return torch.stack(
        [
            low.amin(),
            high.amax(),
            clipped.mean(),
            square.mean(),
            zero.amin(),
            reach.amax(),
            median.mean(),
        ]
    )


def _bits_between(low: float, high: float, scale: float) -> float:
    """Bits that number the grid's points from ``low`` to ``high``."""
    if not scale or not high > low:
        return 0.0
    return math.log2((high - low) / scale + 1)

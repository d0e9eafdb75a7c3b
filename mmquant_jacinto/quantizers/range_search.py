"""Ranges that lose least: found on histograms, for the grid that each range gives."""

from collections.abc import Iterable
from typing import Callable

import torch
from torch import Tensor

from ..registry import OBSERVERS
from .activation_grids import GridFormats
from .observers import Observer, sample_rows
from .statistics.histograms import Histograms

# Twelve to the octave, down to a 128th of what was seen.
FRACTIONS = tuple(2.0 ** (-k / 12) for k in range(85))
# Quantizers whose costs are computed side by side: bounds the memory.
ROWS = 256
# Stands for a probability of zero in a logarithm.
SMALLEST_SHARE = 1e-10

# (counts, centers, widths, scale, lowest, highest step) -> cost: (Q,)
Cost = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def squared_error(
    counts: Tensor,
    centers: Tensor,
    widths: Tensor,
    scale: Tensor,
    lowest: Tensor,
    highest: Tensor,
) -> Tensor:
    """Sum of the squared errors of quantization.

    See Nagel et al., A White Paper on Neural Network Quantization
    (arXiv 2106.08295), section 3.1.

    Args:
        counts (Tensor): Histograms: (Q, B).
        centers (Tensor): Middles of their bins: (Q, B).
        widths (Tensor): Widths of their bins: (Q, 1).
        scale (Tensor): Steps of the grids: (Q, 1).
        lowest (Tensor): Their lowest step: (Q, 1).
        highest (Tensor): Their highest step: (Q, 1).

    Returns:
        Tensor: (Q,).
    """
    error = centers - (centers / scale).round_().clamp_(lowest, highest).mul_(scale)
    error = error.square_()
    finer = scale < widths
    if finer.any():
        # Within a bin there are several steps: the error is uniform.
        clipped = centers - centers.clamp(lowest * scale, highest * scale)
        error = torch.where(finer, clipped.square_() + scale.square() / 12, error)
    return (counts * error).sum(1)


def divergence(
    counts: Tensor,
    centers: Tensor,
    widths: Tensor,
    scale: Tensor,
    lowest: Tensor,
    highest: Tensor,
) -> Tensor:
    """Kullback-Leibler divergence of the quantized distribution.

    See Migacz, 8-bit Inference with TensorRT (GTC 2017). The reference has what
    the range cuts off in its outermost bins. The candidate has the counts of a
    step spread evenly over those of its bins where the reference has any. As
    there, a step has one bin at least: grids that are finer cost infinity.

    Args:
        As of :func:`squared_error`.

    Returns:
        Tensor: (Q,).
    """
    steps = (centers / scale).round_()
    inside = counts * ((steps >= lowest) & (steps <= highest))
    reference = inside.clone()
    for end, cut in (
        ((steps < lowest).sum(1, keepdim=True), steps < lowest),
        ((steps <= highest).sum(1, keepdim=True) - 1, steps > highest),
    ):
        # Of a range that is shorter than a bin nothing is left inside.
        end = end.clamp(0, counts.shape[1] - 1)
        reference.scatter_add_(1, end, (counts * cut).sum(1, keepdim=True))
    # Steps by number of the bins' first: there are no more than bins.
    number = (steps[:, 1:] != steps[:, :-1]).cumsum(1)
    number = torch.nn.functional.pad(number, (1, 0))
    occupied = (reference > 0).to(counts.dtype)
    empty = torch.zeros_like(counts)
    mass = empty.scatter_add(1, number, inside).gather(1, number)
    bins = empty.scatter_add(1, number, occupied).gather(1, number)
    candidate = mass / bins.clamp(min=1) * occupied
    reference = reference / reference.sum(1, keepdim=True)
    candidate = candidate / candidate.sum(1, keepdim=True)
    candidate = candidate.clamp(min=SMALLEST_SHARE)
    result = (torch.xlogy(reference, reference / candidate)).sum(1)
    return torch.where((scale < widths).squeeze(1), torch.inf, result)


class HistogramObserver(Observer):
    """Counts histograms over all steps, and finds in them what ranges lose least.

    With 16 bits nothing is to be cut off: such a range is that of ``'minmax'``.
    """

    searches = True
    has_room = True

    def sample(self, x: Tensor) -> Tensor:
        return sample_rows(x)

    def search(
        self, histograms: Histograms, formats: GridFormats
    ) -> tuple[Tensor, Tensor]:
        """The ranges of Q quantizers.

        Args:
            histograms (Histograms): Of all that was observed.
            formats (GridFormats): Of the same quantizers.

        Returns:
            Tuple[Tensor, Tensor]: Lower and upper ends, float32: (Q,) each; zeros for
            what was never seen.
        """
        raise NotImplementedError


@OBSERVERS.register_module(name='mse')
class SquaredErrorObserver(HistogramObserver):
    """Ranges of least squared error."""

    def search(
        self, histograms: Histograms, formats: GridFormats
    ) -> tuple[Tensor, Tensor]:
        return search_ranges(squared_error, histograms, formats)


@OBSERVERS.register_module(name='entropy')
class DivergenceObserver(HistogramObserver):
    """Ranges of least divergence."""

    def search(
        self, histograms: Histograms, formats: GridFormats
    ) -> tuple[Tensor, Tensor]:
        return search_ranges(divergence, histograms, formats)


@torch.no_grad()
def search_ranges(
    cost: Cost, histograms: Histograms, formats: GridFormats
) -> tuple[Tensor, Tensor]:
    """The ranges whose grids lose least of what the histograms counted.

    Candidates are fractions of what was seen. Of the squared error they are of both
    ends together, then, where the grid is affine, of each end alone. The divergence
    has one threshold for magnitudes, as in the original: each end alone, it would cut
    off an end of images, whose few distinct values it takes for detail. Of equal
    candidates the widest is taken.

    Args:
        cost (Callable): :func:`squared_error` or :func:`divergence`.
        histograms (Histograms): Of Q quantizers.
        formats (GridFormats): Of the same.

    Returns:
        Tuple[Tensor, Tensor]: Lower and upper ends, float32: (Q,) each; zeros
        for what was never seen.
    """
    seen = histograms.ends.clamp(min=0)
    found = [
        _search(
            cost,
            histograms.counts[rows].float(),
            histograms.centers[rows],
            histograms.widths[rows, None],
            formats.to(seen.device).rows(rows),
            -seen[rows, 0],
            seen[rows, 1],
        )
        for rows in torch.arange(len(seen), device=seen.device).split(ROWS)
    ]
    low, high = (torch.cat(ends) for ends in zip(*found))
    return low, high


def _search(
    cost: Cost,
    counts: Tensor,
    centers: Tensor,
    widths: Tensor,
    formats: GridFormats,
    seen_low: Tensor,
    seen_high: Tensor,
) -> tuple[Tensor, Tensor]:
    def cost_of(low: Tensor, high: Tensor) -> Tensor:
        grid = (column.float()[:, None] for column in formats.grids(low, high))
        return cost(counts, centers, widths, *grid)

    low, high = seen_low, seen_high
    least = cost_of(low, high)

    def best_of(candidates: Iterable[tuple[Tensor, Tensor]]) -> None:
        nonlocal low, high, least
        for new_low, new_high in candidates:
            new = cost_of(new_low, new_high)
            better = new < least
            least = torch.where(better, new, least)
            low = torch.where(better, new_low, low)
            high = torch.where(better, new_high, high)

    if cost is divergence:
        reach = torch.maximum(-seen_low, seen_high)
        best_of(
            (seen_low.maximum(-reach * f), seen_high.minimum(reach * f))
            for f in FRACTIONS
        )
        return low, high
    best_of((seen_low * f, seen_high * f) for f in FRACTIONS)
    one_sided = (seen_low == 0) | (seen_high == 0)
    if not (formats.symmetric | one_sided).all():
        fixed = low
        best_of((fixed, seen_high * f) for f in FRACTIONS)
        fixed = high
        best_of((seen_low * f, fixed) for f in FRACTIONS)
    return low, high

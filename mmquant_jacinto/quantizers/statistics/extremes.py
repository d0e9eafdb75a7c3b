"""Extremes of what a step has observed, mergeable over calls and processes.

Lists of extremes can be merged exactly, over several tensors that share a scale and
over processes, so two processes see the range of the doubled batch.
"""

from collections import Counter
from typing import NamedTuple, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from ..observers import is_distributed

# Elements whose largest is found first, where several are looked for.
BLOCK = 64


class Observation(NamedTuple):
    """A sample of one tensor.

    Args:
        quantizer (int): Which quantizer it is for.
        sample (Tensor): Elements of the tensor: (n,).
        clip (tuple, optional): Real bounds of the activation that is fused
            into the quantizer, each None where it is open.
        extremes (Tensor, optional): Ends of the whole tensor, where a histogram is
            to hold them: (m,), float32, a copy.
        weight (int): How many elements each of the sample stands for.
    """

    quantizer: int
    sample: Tensor
    clip: Optional[tuple]
    extremes: Optional[Tensor] = None
    weight: int = 1


class Layout(NamedTuple):
    """Where the observations of a step go, as tensors on their device.

    Args:
        slots (Tensor): Row of each observation in the merged table.
        per_quantizer (int): Rows of the table for each quantizer.
        depth (int): How many extremes to keep.
        sizes (Tensor): Elements sampled for each quantizer: (Q,).
        signed (List[int]): Observations whose smallest elements matter.
        signed_slots (Tensor): Row of each of those.
        bounds (tuple, optional): Least and largest value that each
            observation's clip lets through: (P, 1) each.
        signed_bounds (tuple, optional): The same of the negated elements of those
            in ``signed``.
    """

    slots: Tensor
    per_quantizer: int
    depth: int
    sizes: Tensor
    signed: list[int]
    signed_slots: Tensor
    bounds: Optional[tuple[Tensor, Tensor]]
    signed_bounds: Optional[tuple[Tensor, Tensor]]


class Extremes:
    """Finds the extremes of all observations of a step at once.

    Args:
        positive (Sequence[bool]): For each quantizer, whether negative
            elements are to be ignored.
    """

    def __init__(self, positive: list[bool]) -> None:
        self.positive = positive
        self._layout: Optional[tuple[tuple, Layout]] = None
        self._highs, self._lows = _Rows(), _Rows()

    def __call__(
        self, observations: list[Observation], depth: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merges the observations of a step.

        Args:
            observations (List[Observation]): In any order.
            depth (int): How many extremes to keep.
            device (torch.device): Where they are.

        Returns:
            Tuple[Tensor, Tensor, Tensor]: For each quantizer the largest
            elements, the largest of the negated ones (descending, padded
            with minus infinity: (Q, k)), and the samples' sizes: (Q,).
        """
        layout = self._layout_of(observations, depth, device)
        samples = [item.sample for item in observations]
        highs = _largest(samples, layout.depth, rows=self._highs)
        negated = [samples[i] for i in layout.signed]
        lows = _largest(negated, layout.depth, negated=True, rows=self._lows)
        if layout.bounds is not None:
            highs = _clamp(highs, *layout.bounds)
            lows = _clamp(lows, *layout.signed_bounds)
        return (
            self._merge(highs, layout.slots, layout, device),
            self._merge(lows, layout.signed_slots, layout, device),
            layout.sizes,
        )

    def _merge(
        self, extremes: Tensor, slots: Tensor, layout: Layout, device: torch.device
    ) -> Tensor:
        rows = len(self.positive) * layout.per_quantizer
        table = torch.full((rows, layout.depth), -torch.inf, device=device)
        if len(slots):
            table[slots, : extremes.shape[1]] = extremes
        if layout.per_quantizer == 1:
            return table
        return table.view(len(self.positive), -1).topk(layout.depth, dim=1).values

    def _layout_of(
        self, observations: list[Observation], depth: int, device: torch.device
    ) -> Layout:
        key = (
            depth,
            *(
                (item.quantizer, item.sample.numel(), item.clip)
                for item in observations
            ),
        )
        # As a rule, each step observes what the one before did.
        if self._layout is None or self._layout[0] != key:
            self._layout = key, self._make_layout(observations, depth, device)
        return self._layout[1]

    def _make_layout(
        self, observations: list[Observation], depth: int, device: torch.device
    ) -> Layout:
        numbers = [0] * len(self.positive)
        sizes = [0] * len(self.positive)
        places = []
        for item in observations:
            places.append((item.quantizer, numbers[item.quantizer]))
            numbers[item.quantizer] += 1
            sizes[item.quantizer] += item.sample.numel()
        per_quantizer = max(numbers)
        slots = [quantizer * per_quantizer + number for quantizer, number in places]
        signed = [
            i
            for i, item in enumerate(observations)
            if not self.positive[item.quantizer]
        ]
        clips = [item.clip or (None, None) for item in observations]
        bounds = signed_bounds = None
        if any(end is not None for clip in clips for end in clip):
            above, below = (
                torch.tensor(
                    [open_end if clip[i] is None else clip[i] for clip in clips],
                    dtype=torch.float32,
                    device=device,
                )[:, None]
                for i, open_end in enumerate((-torch.inf, torch.inf))
            )
            bounds = above, below
            signed_bounds = -below[signed], -above[signed]
        return Layout(
            torch.tensor(slots, device=device),
            per_quantizer,
            depth,
            torch.tensor(sizes, dtype=torch.float32, device=device),
            signed,
            torch.tensor([slots[i] for i in signed], device=device),
            bounds,
            signed_bounds,
        )


class _Rows:
    """A table of samples of different sizes, which each step fills again."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._table = torch.empty(0)
        self._rows: list[Tensor] = []

    def fill(self, samples: list[Tensor], nothing: float) -> Tensor:
        """The samples, a row each, behind them ``nothing``, always the same: (P, n).

        n is a whole number of blocks.
        """
        sizes = [sample.numel() for sample in samples]
        if sizes != self._sizes or self._table.device != samples[0].device:
            width = -(-max(sizes) // BLOCK) * BLOCK
            self._table = samples[0].new_full((len(sizes), width), nothing)
            rows = zip(self._table.unbind(), sizes)
            self._rows = [row.narrow(0, 0, size) for row, size in rows]
            self._sizes = sizes
        _copy_all(self._rows, samples)
        return self._table


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies together: on a GPU each of them would be a launch."""
    if hasattr(torch, '_foreach_copy_'):
        torch._foreach_copy_(targets, sources)
    else:
        for target, source in zip(targets, sources):
            target.copy_(source)


def _largest(
    samples: list[Tensor],
    depth: int,
    negated: bool = False,
    rows: Optional[_Rows] = None,
) -> Tensor:
    """The largest elements of each sample, or of the negated one: (P, depth or less).

    Descending; where there are not as many, minus infinity.
    """
    if not samples:
        return torch.empty(0, 1)
    table = (rows or _Rows()).fill(samples, torch.inf if negated else -torch.inf)
    blocks = (table.neg() if negated else table).unflatten(1, (-1, BLOCK))
    # The k largest elements are in the k blocks with the largest maxima: a fifth of
    # the time of looking among all.
    best = blocks.amax(2).topk(min(depth, blocks.shape[1]), dim=1).indices
    found = blocks.gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    return found.topk(min(depth, found.shape[1]), dim=1).values


def _clamp(extremes: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Clamps each row to its bounds, but for the padding."""
    clamped = torch.maximum(torch.minimum(extremes, below), above)
    return torch.where(extremes == -torch.inf, extremes, clamped)


def ranked(extremes: Tensor, rank: Tensor) -> Tensor:
    """The ``rank``-th entry of each row, of those that are there."""
    there = (extremes > -torch.inf) | extremes.isnan()
    last = there.sum(1).clamp(min=1)
    place = torch.minimum(rank.clamp(min=1), last) - 1
    return extremes.gather(1, place[:, None]).squeeze(1)


def largest_sample(pending: list[Observation], device: torch.device) -> int:
    """Most elements that any quantizer may have in a step, in all processes."""
    sizes: Counter[int] = Counter()
    for item in pending:
        sizes[item.quantizer] += item.sample.numel()
    largest = max(sizes.values(), default=0)
    if not is_distributed():
        return largest
    found = torch.tensor([largest], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found) * dist.get_world_size()


def gather_extremes(
    highs: Tensor, lows: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the extremes of all processes."""
    depth = highs.shape[1]
    flat = torch.cat([highs, lows, sizes[:, None]], dim=1)
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, flat)
    highs, lows = (
        torch.cat([part[:, start : start + depth] for part in parts], dim=1)
        .sort(dim=1, descending=True)
        .values
        for start in (0, depth)
    )
    return highs, lows, torch.stack([part[:, -1] for part in parts]).sum(0)

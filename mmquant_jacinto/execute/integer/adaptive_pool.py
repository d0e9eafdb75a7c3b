"""Adaptive average pooling to a size that does not divide the map's.

Its windows differ in size and overlap. Sums of integers over them are exact, and are
divided once, by the number of elements that each has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...targets.grid import Grid

ADAPTIVE = {f'adaptive_avg_pool{dims}d': dims for dims in (1, 2, 3)}


def target_sizes(source: Sequence[int], output_size: Any) -> list[int]:
    """The size that a call pools to, where None keeps an axis as it is.

    Args:
        source (Sequence[int]): Size of the maps.
        output_size (Any): As the call gives it.
    """
    many = isinstance(output_size, (list, tuple))
    given = output_size if many else [output_size] * len(source)
    return [n if size is None else size for size, n in zip(given, source)]


def is_uneven(source: Sequence[int], output_size: Any) -> bool:
    """Whether windows differ in size, and are more than one.

    Args:
        source (Sequence[int]): Size of the maps.
        output_size (Any): As the call gives it.
    """
    sizes = target_sizes(source, output_size)
    return any(size > 1 for size in sizes) and any(
        size and n % size for n, size in zip(source, sizes)
    )


def windows(n: int, size: int) -> list[tuple[int, int]]:
    """Start and end of each window of an axis of ``n`` elements."""
    return [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]


def members(n: int, size: int) -> Tensor:
    """Which elements of an axis are in which window: (n, size), float32."""
    out = torch.zeros(n, size)
    for i, (start, end) in enumerate(windows(n, size)):
        out[start:end, i] = 1
    return out


def factors(source: Sequence[int], sizes: Sequence[int], scale: float) -> Tensor:
    """What the sums of integers are multiplied by: ``sizes``, float32.

    Args:
        source (Sequence[int]): Size of the maps.
        sizes (Sequence[int]): To which they are pooled.
        scale (float): Of the integers.
    """
    counts = torch.ones(())
    for n, size in zip(source, sizes):
        counts = counts.unsqueeze(-1) * members(n, size).sum(0)
    return torch.full_like(counts, scale).div_(counts)


def adaptive_pool(x: Tensor, given: Grid, output_size: Any, dims: int) -> Tensor:
    """``F.adaptive_avg_pool2d`` of integers and its kin: exact sums, scaled once.

    Args:
        x (Tensor): (..., *size), integers as float32.
        given (Grid): Of the integers.
        output_size (Any): As the call gives it.
        dims (int): Of the maps.
    """
    source = x.shape[-dims:]
    sizes = target_sizes(source, output_size)
    out = x
    for axis, (n, size) in enumerate(zip(source, sizes), start=-dims):
        rows = out.movedim(axis, -1) @ members(n, size).to(x)
        out = rows.movedim(-1, axis)
    return out * factors(source, sizes, given.scale).to(x.device)

"""Views: what a write through one view of a memory makes of the others.

ONNX has no memory to write into: the tensor that the views are of becomes another one,
and a view that is read afterwards is cut out of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..operators.indices import replace_part
from ..operators.translation import SiteWriter, cut

Box = list[tuple[int, int]]  # of each axis, start and end


def _positions(view: Tensor, base: Tensor) -> np.ndarray:
    """Where in a tensor, its elements numbered in order, those of its view are."""
    if view.dtype != base.dtype:
        raise NotImplementedError('a view of another type')
    numbers = torch.empty_strided(base.shape, base.stride(), dtype=torch.int64)
    numbers.copy_(torch.arange(base.numel()).view(base.shape))
    offset = view.storage_offset() - base.storage_offset()
    return numbers.as_strided(view.shape, view.stride(), offset).numpy()


def _box(positions: np.ndarray, shape: Sequence[int]) -> Box | None:
    """The part of a tensor that these are, in order, if they are one."""
    if not positions.size:
        return None
    corners = (np.unravel_index(at, shape) for at in (positions.min(), positions.max()))
    box = [(int(start), int(end) + 1) for start, end in zip(*corners)]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    inside = numbers[tuple(slice(*bounds) for bounds in box)]
    return box if np.array_equal(inside.ravel(), positions.ravel()) else None


def read_part(site: SiteWriter, base: Tensor, view: Tensor) -> str:
    """A view of what ``base`` is now."""
    positions = _positions(view, base)
    box = _box(positions, base.shape)
    if box is None:
        flat = site.reshape(base, (-1,))
        return site.node('Gather', flat, site.ints(positions), axis=0)
    part = site.value(base)
    axes = [axis for axis, size in enumerate(base.shape) if box[axis] != (0, size)]
    if axes:
        starts, ends = zip(*(box[axis] for axis in axes))
        part = cut(site, part, axes, starts, ends, [1] * len(axes))
    return part if view.shape == base.shape else site.reshape(part, view.shape)


def write_part(site: SiteWriter, base: Tensor, view: Tensor) -> str:
    """What ``base`` becomes when its part is what ``view`` is now."""
    positions = _positions(view, base)
    box = _box(positions, base.shape)
    if box is None:
        flat = site.reshape(base, (-1,))
        places = site.ints(positions.ravel())
        values = site.reshape(view, (-1,))
        return site.reshape(
            site.node('ScatterElements', flat, places, values, axis=0), base.shape
        )
    part = site.value(view)
    shape = [end - start for start, end in box]
    if list(view.shape) != shape:
        part = site.reshape(part, shape)
    return replace_part(site, site.value(base), base.shape, box, part)

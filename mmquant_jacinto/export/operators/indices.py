"""Operators that write to a part of a tensor, and those that say to which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .translation import TO_THE_END, SiteWriter, axis_of, cut, translates


def index_items(site: SiteWriter, x: Tensor, index: Any) -> list:
    """What an index says of each axis, an ellipsis written out."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in items if not isinstance(item, Tensor)]:
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        used = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (x.dim() - used)
    for item in items:
        bounds = (item.start, item.stop, item.step) if isinstance(item, slice) else ()
        for bound in bounds:
            if isinstance(bound, Tensor) and site.name_of(bound, site.name):
                raise NotImplementedError('a slice that ends where the image says')
    return items


def nonzero(site: SiteWriter, mask: Tensor) -> list[str]:
    """Where a mask is set: the indices of each axis, as many as there are."""
    if not mask.dim():
        raise NotImplementedError('a mask of one element')
    found = site.node('NonZero', mask)
    return [
        site.node('Gather', found, site.ints(axis), axis=0)
        for axis in range(mask.dim())
    ]


@translates('setitem')
def _setitem(site, x, index, value):
    name = site.value(value, like=x)
    if isinstance(value, Tensor) and value.dtype != x.dtype:
        name = site.cast(name, x.dtype)
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        if isinstance(value, Tensor) and value.numel() > 1:
            raise NotImplementedError('several values where a mask is set')
        mask = site.reshape(index, (*index.shape, *[1] * (x.dim() - index.dim())))
        return site.node('Where', mask, name, x)
    items = index_items(site, x, index)
    if any(isinstance(item, Tensor) for item in items):
        return _scatter(site, x, items, name)
    if any(isinstance(item, list) for item in items):
        return _write_listed(site, x, items, name)
    region, shape = [], []
    for axis, item in enumerate(items):
        if isinstance(item, int):
            start = axis_of(item, x.shape[axis])
            region.append((start, start + 1))
            continue
        if not isinstance(item, slice):
            raise NotImplementedError(f'writing to an index of {type(item).__name__}')
        start, end, step = item.indices(x.shape[axis])
        if step != 1:
            raise NotImplementedError('writing to every other element')
        region.append((start, max(start, end)))
        shape.append(max(0, end - start))
    rest = x.shape[len(region) :]
    name = site.node('Expand', name, site.ints([*shape, *rest]))
    name = site.reshape(name, [*(end - start for start, end in region), *rest])
    return replace_part(site, site.value(x), x.shape, region, name)


def _scatter(site: SiteWriter, x: Tensor, items: list, value: str) -> str:
    """Writes to the places that tensors name together, one for each leading axis."""
    indices = [item for item in items if isinstance(item, Tensor)]
    behind = items[len(indices) :]
    if any(not isinstance(item, slice) or item != slice(None) for item in behind):
        raise NotImplementedError('writing to tensors of indices beside others')
    if any(item.dtype == torch.bool or item.dim() != 1 for item in indices):
        raise NotImplementedError('writing to masks and tables of indices')
    columns = [site.node('Unsqueeze', item, site.ints([1])) for item in indices]
    places = site.node('Concat', *columns, axis=1)
    # How many there are may depend on the image.
    shape = [
        site.node('Shape', indices[0]),
        site.ints([int(size) for size in x.shape[len(indices) :]]),
    ]
    name = site.node('Expand', value, site.node('Concat', *shape, axis=0))
    return site.node('ScatterND', x, places, name)


def _write_listed(site: SiteWriter, x: Tensor, items: list, value: str) -> str:
    """``x[:, [3, 1]] = value``: elements out of both, one put behind the other."""
    axis = next(i for i, item in enumerate(items) if isinstance(item, list))
    if any(item != slice(None) for item in [*items[:axis], *items[axis + 1 :]]):
        raise NotImplementedError('writing to a list of indices and a part besides')
    shape = site.ints([*x.shape[:axis], len(items[axis]), *x.shape[axis + 1 :]])
    both = site.node('Concat', x, site.node('Expand', value, shape), axis=axis)
    order = torch.arange(size := x.shape[axis])
    order[items[axis]] = size + torch.arange(len(items[axis]))
    return site.node('Gather', both, order, axis=axis)


def replace_part(
    site: SiteWriter,
    x: str,
    shape: Sequence[int],
    region: Sequence[tuple[int, int]],
    value: str,
) -> str:
    """A tensor with the part between the bounds of its first axes replaced."""
    axis = next((i for i, bounds in enumerate(region) if bounds != (0, shape[i])), None)
    if axis is None:
        return value
    (start, end), size = region[axis], shape[axis]
    inner = cut(site, x, [axis], [start], [end], [1])
    narrowed = [*shape[:axis], end - start, *shape[axis + 1 :]]
    region = [*region[:axis], (0, end - start), *region[axis + 1 :]]
    parts = [replace_part(site, inner, narrowed, region, value)]
    if start:
        parts.insert(0, cut(site, x, [axis], [0], [start], [1]))
    if end < size:
        parts.append(cut(site, x, [axis], [end], [TO_THE_END], [1]))
    return site.node('Concat', *parts, axis=axis)

"""Operators that move elements: shapes, slices, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...record.ops import per_axis
from .translation import (
    TO_THE_END,
    SiteWriter,
    axis_of,
    cut,
    translates,
)


@translates(
    'reshape',
    'view',
    'flatten',
    'unflatten',
    'view_as',
    'reshape_as',
    'squeeze',
    'unsqueeze',
)
def _reshape(site, x, *args, **kwargs):
    return site.reshape(x, site.out.shape)


@translates('permute')
def _permute(site, x, *dims):
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        (dims,) = dims
    return site.node('Transpose', x, perm=[axis_of(d, x.dim()) for d in dims])


@translates('transpose', 'swapaxes')
def _transpose(site, x, dim0, dim1):
    order = list(range(x.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return site.node('Transpose', x, perm=order)


@translates('mT')
def _matrix_transpose(site, x):
    return _transpose(site, x, -2, -1)


@translates('t', 'T')
def _t(site, x):
    return site.node('Transpose', x, perm=list(range(x.dim()))[::-1])


@translates('movedim')
def _movedim(site, x, source, destination):
    order = torch.arange(x.dim()).movedim(0, 0).tolist()
    moved = torch.empty(tuple(range(2, 2 + x.dim()))).movedim(source, destination)
    order = [size - 2 for size in moved.shape]
    return site.node('Transpose', x, perm=order)


@translates(
    'contiguous',
    'clone',
    'dropout',
    'dropout2d',
    'alias',
    'detach',
    'requires_grad',
    'identity',
    'channels_last',
    'laid_out_like',
)
def _identity(site, x, *args, **kwargs):
    return site.value(x)


@translates('float', 'to', 'type_as', 'half', 'double', 'long', 'int', 'bool', 'type')
def _to(site, x, *args, **kwargs):
    return site.value(x) if site.out.dtype == x.dtype else site.cast(x, site.out.dtype)


@translates('expand', 'expand_as', 'broadcast_to')
def _expand(site, x, *args, **kwargs):
    return site.node('Expand', x, site.ints(list(site.out.shape)))


@translates('repeat', 'tile')
def _repeat(site, x, *args, **kwargs):
    missing = site.out.dim() - x.dim()
    shape = [1] * missing + list(x.shape)
    if missing:
        x = site.reshape(x, shape)
    times = [o // n if n else 1 for o, n in zip(site.out.shape, shape)]
    return site.node('Tile', x, site.ints(times))


@translates('repeat_interleave')
def _repeat_interleave(site, x, repeats, dim=None, *, output_size=None):
    if isinstance(repeats, Tensor):
        raise NotImplementedError('repeats of each element')
    shape = [x.numel()] if dim is None else list(x.shape)
    axis = 0 if dim is None else axis_of(dim, x.dim())
    spread = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    wide = [*shape[: axis + 1], repeats, *shape[axis + 1 :]]
    out = site.node('Expand', site.reshape(x, spread), site.ints(wide))
    return site.reshape(out, site.out.shape)


@translates('zero', 'fill')
def _fill(site, x, value=0):
    return site.node('Expand', site.value(value, like=x), site.ints(x.shape))


@translates('cat', 'concat', 'concatenate')
def _cat(site, tensors, dim=0, **kwargs):
    axis = kwargs.get('axis', dim)
    kept = [x for x in tensors if not (x.dim() == 1 and x.numel() == 0)]
    return site.node('Concat', *kept, axis=axis_of(axis, site.out.dim()))


@translates('stack')
def _stack(site, tensors, dim=0):
    axis = axis_of(dim, site.out.dim())
    shape = list(site.out.shape)
    shape[axis] = 1
    return site.node('Concat', *[site.reshape(x, shape) for x in tensors], axis=axis)


@translates('chunk', 'split', 'split_with_sizes', 'tensor_split')
def _split(site, x, sections=None, dim=0, **kwargs):
    axis = axis_of(dim, x.dim())
    sizes = [part.shape[axis] for part in site.out]
    if len(sizes) == 1:
        return [site.value(x)]
    return site.node('Split', x, site.ints(sizes), outputs=len(sizes), axis=axis)


@translates('unbind')
def _unbind(site, x, dim=0):
    axis = axis_of(dim, x.dim())
    return [
        site.node('Gather', x, site.ints(i), axis=axis) for i in range(len(site.out))
    ]


@translates('narrow')
def _narrow(site, x, dim, start, length):
    return cut(site, x, [axis_of(dim, x.dim())], [start], [start + length], [1])


@translates('select')
def _select(site, x, dim, index):
    return site.node('Gather', x, site.ints(index), axis=axis_of(dim, x.dim()))


@translates('index_select')
def _index_select(site, x, dim, index):
    return site.node('Gather', x, index, axis=axis_of(dim, x.dim()))


@translates('gather')
def _gather(site, x, dim, index, *, sparse_grad=False):
    return site.node('GatherElements', x, index, axis=axis_of(dim, x.dim()))


@translates('topk')
def _topk(site, x, k, dim=-1, largest=True, sorted=True):
    axis = axis_of(dim, x.dim())
    return site.node(
        'TopK', x, site.ints([k]), outputs=2, axis=axis, largest=int(largest)
    )


def _items(site: SiteWriter, x: Tensor, index: Any) -> list:
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


@translates('getitem')
def _getitem(site, x, index):
    items = _items(site, x, index)
    cuts: list[tuple[int, int, int, int]] = []  # axis, start, end and step
    indexed: dict[int, Tensor] = {}
    axis = 0
    for item in items:
        if item is None:
            continue
        if isinstance(item, (list, tuple)):
            item = torch.tensor(item)
        if isinstance(item, Tensor):
            if item.dtype == torch.bool:
                raise NotImplementedError('indexing by a mask')
            indexed[axis] = item
        elif isinstance(item, int):
            start = axis_of(item, x.shape[axis])
            cuts.append((axis, start, start + 1, 1))
        elif item != slice(None):
            start, end, step = item.indices(x.shape[axis])
            if item.stop is None and step > 0:
                end = TO_THE_END
            cuts.append((axis, start, end, step))
        axis += 1
    if len(indexed) > 1:
        raise NotImplementedError('indexing by several tensors')
    out = site.value(x)
    if cuts:
        out = cut(site, out, *zip(*cuts))
    for axis, item in indexed.items():
        out = site.node('Gather', out, item, axis=axis)
        if any(isinstance(other, int) for other in items):
            return site.reshape(out, site.out.shape)
    kept = any(item is None or isinstance(item, int) for item in items)
    return site.reshape(out, site.out.shape) if kept else out


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
    region, shape = [], []
    items = _items(site, x, index)
    if any(isinstance(item, list) for item in items):
        return _write_listed(site, x, items, name)
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


@translates('cummax')
def _cummax(site, x, dim):
    # Each pass doubles how far back an element looks.
    axis, out, reach = axis_of(dim, x.dim()), site.value(x), 1
    while reach < x.shape[axis]:
        head = cut(site, out, [axis], [0], [reach], [1])
        tail = cut(site, out, [axis], [reach], [TO_THE_END], [1])
        earlier = cut(site, out, [axis], [0], [-reach], [1])
        out = site.node('Concat', head, site.node('Max', tail, earlier), axis=axis)
        reach *= 2
    return [out, None]  # where they were


@translates('flip')
def _flip(site, x, *dims):
    if len(dims) == 1 and isinstance(dims[0], (list, tuple)):
        (dims,) = dims
    axes = [axis_of(d, x.dim()) for d in dims]
    low = [np.iinfo(np.int64).min] * len(axes)
    return cut(site, x, axes, [-1] * len(axes), low, [-1] * len(axes))


@translates('roll')
def _roll(site, x, shifts, dims):
    out = site.value(x)
    for shift, dim in zip(per_axis(shifts, 1), per_axis(dims, 1)):
        axis = axis_of(dim, x.dim())
        at = -shift % x.shape[axis]
        if at:
            tail = cut(site, out, [axis], [at], [x.shape[axis]], [1])
            head = cut(site, out, [axis], [0], [at], [1])
            out = site.node('Concat', tail, head, axis=axis)
    return out


@translates('pad')
def _pad(site, x, pad, mode='constant', value=None):
    before, after = [0] * x.dim(), [0] * x.dim()
    for i in range(len(pad) // 2):
        before[-1 - i], after[-1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    mode = {'replicate': 'edge', 'circular': 'wrap'}.get(mode, mode)
    fill = [float(value)] if value else []
    return site.node('Pad', x, site.ints(before + after), *fill, mode=mode)


@translates('unfold')
def _unfold(site, x, kernel_size, dilation=1, padding=0, stride=1):
    if site.out.dim() != 3 or any(per_axis(padding, 2)):
        raise NotImplementedError('Tensor.unfold, or padding')
    (rows, columns), (down, right) = per_axis(kernel_size, 2), per_axis(stride, 2)
    spread_y, spread_x = per_axis(dilation, 2)
    batch, channels, height, width = x.shape
    high = (height - spread_y * (rows - 1) - 1) // down + 1
    wide = (width - spread_x * (columns - 1) - 1) // right + 1
    taps = []
    for i in range(rows):
        for j in range(columns):
            starts = [i * spread_y, j * spread_x]
            ends = [
                starts[0] + down * (high - 1) + 1,
                starts[1] + right * (wide - 1) + 1,
            ]
            tap = cut(site, x, [2, 3], starts, ends, [down, right])
            taps.append(site.reshape(tap, (batch, channels, 1, high * wide)))
    out = site.node('Concat', *taps, axis=2)
    return site.reshape(out, site.out.shape)


@translates('pixel_shuffle')
def _pixel_shuffle(site, x, upscale_factor):
    return site.node('DepthToSpace', x, blocksize=upscale_factor, mode='CRD')


@translates('pixel_unshuffle')
def _pixel_unshuffle(site, x, downscale_factor):
    n, c, h, w = x.shape
    r = downscale_factor
    out = site.reshape(x, (n, c, h // r, r, w // r, r))
    out = site.node('Transpose', out, perm=[0, 1, 3, 5, 2, 4])
    return site.reshape(out, site.out.shape)


@translates('channel_shuffle')
def _channel_shuffle(site, x, groups):
    n, c, h, w = x.shape
    out = site.reshape(x, (n, groups, c // groups, h, w))
    out = site.node('Transpose', out, perm=[0, 2, 1, 3, 4])
    return site.reshape(out, x.shape)


@translates('embedding')
def _embedding(
    site,
    indices,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
):
    return site.node('Gather', weight, indices, axis=0)

"""Operators of maps: pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
from torch import Tensor

from ...execute.integer.adaptive_pool import is_uneven, target_sizes, windows
from ...execute.integer.exact_functions import Pool
from ...execute.integer.sampling import Resize
from ...record.ops import per_axis
from .translation import (
    TRANSLATIONS,
    SiteWriter,
    cut,
    translates,
)


@translates('max_pool1d', 'max_pool2d', 'max_pool3d')
def _max_pool(
    site,
    x,
    kernel_size,
    stride=None,
    padding=0,
    dilation=1,
    ceil_mode=False,
    return_indices=False,
):
    dims = _pooled_dims(site)
    spread = per_axis(dilation, dims)
    return site.node(
        'MaxPool',
        x,
        **_windows(site, x.shape[2:], Pool(kernel_size, stride, padding), spread),
        dilations=spread,
    )


def _pooled_dims(site: SiteWriter) -> int:
    return _pooled(site).dim() - 2


def _pooled(site: SiteWriter) -> Tensor:
    return site.out[0] if isinstance(site.out, tuple) else site.out


def _windows(
    site: SiteWriter, source: Sequence[int], pool: Pool, spread: Sequence[int]
) -> dict[str, Any]:
    """Where windows are, with as much padding at the end as the last of them needs.

    Engines differ in which of them there are where ``ceil_mode`` decides it.
    """
    target = _pooled(site).shape[2:]
    dims = len(target)
    kernel = per_axis(pool.kernel_size, dims)
    strides = per_axis(pool.stride or pool.kernel_size, dims)
    pads = per_axis(pool.padding, dims)
    ends = [
        max((t - 1) * s + d * (k - 1) + 1 - n - p, 0)
        for n, t, k, s, p, d in zip(source, target, kernel, strides, pads, spread)
    ]
    if any(end >= k for end, k in zip(ends, kernel)):
        # More than an engine takes; between far apart elements.
        return dict(kernel_shape=kernel, strides=strides, pads=pads * 2, ceil_mode=1)
    return dict(kernel_shape=kernel, strides=strides, pads=pads + ends)


def pool_windows(
    site: SiteWriter, x: Any, source: Sequence[int], pool: Pool, counts_padding: bool
) -> str:
    """Means of windows, in which padding counts or not; ``x`` may be a name."""
    return site.node(
        'AveragePool',
        x,
        **_windows(site, source, pool, [1] * len(source)),
        count_include_pad=int(counts_padding),
    )


@translates('avg_pool1d', 'avg_pool2d', 'avg_pool3d')
def _average_pool(site, x, *args, **kwargs):
    pool = Pool(*args, **kwargs)
    dims, source = x.dim() - 2, x.shape[2:]
    pads = any(per_axis(pool.padding, dims))
    counts_padding = pool.count_include_pad and pads
    if pool.divisor_override is None and not (pool.ceil_mode and counts_padding):
        return pool_windows(site, x, source, pool, counts_padding)
    if dims != 2:
        raise NotImplementedError('sums of an average pooling that are not of maps')
    mean = pool_windows(site, x, source, pool, True)
    return site.node('Mul', mean, pool.factors(x, float(pool.area)))


def _adaptive(kind: str) -> Callable:
    def translate(site, x, output_size, return_indices=False):
        sizes = target_sizes(x.shape[2:], output_size)
        if all(size == 1 for size in sizes):
            return site.node(f'Global{kind}', x)
        if is_uneven(x.shape[2:], output_size):
            return _pooled_one_by_one(site, kind, site.value(x), x.shape[2:], sizes, 2)
        kernel = [n // size for n, size in zip(x.shape[2:], sizes)]
        return site.node(kind, x, kernel_shape=kernel, strides=kernel)

    return translate


def _pooled_one_by_one(
    site: SiteWriter,
    kind: str,
    x: str,
    shape: Sequence[int],
    sizes: Sequence[int],
    axis: int,
) -> str:
    """Adaptive pooling where windows overlap."""
    if not sizes:
        return site.node(f'Global{kind}', x)
    bounds = windows(shape[0], sizes[0])
    parts = [cut(site, x, [axis], [start], [end], [1]) for start, end in bounds]
    parts = [
        _pooled_one_by_one(site, kind, part, shape[1:], sizes[1:], axis + 1)
        for part in parts
    ]
    return site.node('Concat', *parts, axis=axis) if sizes[0] > 1 else parts[0]


for _dims in (1, 2, 3):
    TRANSLATIONS[f'adaptive_avg_pool{_dims}d'] = _adaptive('AveragePool')
    TRANSLATIONS[f'adaptive_max_pool{_dims}d'] = _adaptive('MaxPool')


@translates('interpolate', 'upsample')
def _interpolate(site, x, *args, **kwargs):
    return write_resize(site, x, x.shape[2:], Resize(*args, **kwargs))


def write_resize(site: SiteWriter, x: Any, source: Sequence[int], call: Resize) -> str:
    """A resizing to the size of ``site.out``.

    Args:
        site (SiteWriter): Where it is called.
        x (Any): What is resized, or its name.
        source (Sequence[int]): The size that it has.
        call (Resize): How.
    """
    if call.antialias:
        raise NotImplementedError('antialias')
    mode = call.mode
    options: dict[str, Any]
    if mode == 'nearest':
        options = dict(
            coordinate_transformation_mode='asymmetric', nearest_mode='floor'
        )
    elif mode == 'nearest-exact':
        options = dict(
            coordinate_transformation_mode='half_pixel',
            nearest_mode='round_prefer_ceil',
        )
    else:
        way = 'align_corners' if call.align_corners else 'half_pixel'
        options = dict(coordinate_transformation_mode=way)
        if mode == 'bicubic':
            options['cubic_coeff_a'] = -0.75
    kind = 'nearest' if mode.startswith('nearest') else 'linear'
    kind = 'cubic' if mode == 'bicubic' else kind
    target = site.out.shape[2:]
    scales = call.scales(source, target)
    # Other factors leave the size to an engine's rounding.
    if all((16 * scale).is_integer() for scale in scales):
        factors = np.asarray([1.0, 1.0, *scales], np.float32)
        name = site.writer.constant(factors, 'scales')
        return site.node('Resize', x, None, name, mode=kind, **options)
    sizes = site.ints(list(site.out.shape))
    return site.node('Resize', x, None, None, sizes, mode=kind, **options)


@translates('grid_sample')
def _grid_sample(
    site, x, grid, mode='bilinear', padding_mode='zeros', align_corners=None
):
    return site.node(
        'GridSample',
        x,
        grid,
        mode=mode,
        padding_mode=padding_mode,
        align_corners=int(bool(align_corners)),
    )

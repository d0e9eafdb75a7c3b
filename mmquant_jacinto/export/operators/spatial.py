"""Operators of maps: pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from ...execute.integer.sampling import Resize
from ...record.ops import per_axis
from .translation import (
    TRANSLATIONS,
    SiteWriter,
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
    return site.node(
        'MaxPool',
        x,
        kernel_shape=per_axis(kernel_size, dims),
        strides=per_axis(stride or kernel_size, dims),
        pads=per_axis(padding, dims) * 2,
        dilations=per_axis(dilation, dims),
        ceil_mode=int(ceil_mode),
    )


def _pooled_dims(site: SiteWriter) -> int:
    out = site.out[0] if isinstance(site.out, tuple) else site.out
    return out.dim() - 2


def write_average_pool(
    site: SiteWriter,
    x: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:
    """``F.avg_pool2d`` and its kin; ``x`` may be a name."""
    if divisor_override is not None:
        raise NotImplementedError('divisor_override')
    dims = _pooled_dims(site)
    return site.node(
        'AveragePool',
        x,
        kernel_shape=per_axis(kernel_size, dims),
        strides=per_axis(stride or kernel_size, dims),
        pads=per_axis(padding, dims) * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )


TRANSLATIONS.update(
    dict.fromkeys(('avg_pool1d', 'avg_pool2d', 'avg_pool3d'), write_average_pool)
)


def _adaptive(kind: str) -> Callable:
    def translate(site, x, output_size, return_indices=False):
        dims = _pooled_dims(site)
        given = per_axis(output_size, dims)
        sizes = [n if t is None else t for t, n in zip(given, x.shape[2:])]
        if all(size == 1 for size in sizes):
            return site.node(f'Global{kind}', x)
        if any(n % size for n, size in zip(x.shape[2:], sizes)):
            raise NotImplementedError(
                f'adaptive pooling from {tuple(x.shape[2:])} to {tuple(sizes)}'
            )
        kernel = [n // size for n, size in zip(x.shape[2:], sizes)]
        return site.node(kind, x, kernel_shape=kernel, strides=kernel)

    return translate


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

"""Exact operators: the functions of ``exact_functions``, as ONNX nodes.

ONNX Runtime would compute a softmax or a normalization between quantized tensors by
a kernel of its own, in an order of its own. These are the same operations as in
PyTorch, one by one, each of them exact or rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from ...execute.integer.adaptive_pool import ADAPTIVE, factors, members, target_sizes
from ...execute.integer.exact_functions import (
    EXACT_SQUARES,
    MANTISSA,
    REAL_EXP,
    RESIZES,
    Pool,
    rounded_exp,
    unit_of,
)
from ...execute.integer.sampling import Resize
from ...targets.grid import Grid
from .elementwise import zero_where_hidden
from .sampling import grid_sample, interpolate
from .spatial import pool_windows, write_resize
from .translation import SiteWriter, axis_of


def _softmax(
    site: SiteWriter,
    x: str,
    given: Grid | None,
    like: Tensor,
    dim: int,
    *,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> str:
    return _weights(site, x, given, 1.0, None, like, axis_of(dim, like.dim()))


def _masked_softmax(
    site: SiteWriter,
    x: str,
    given: Grid | None,
    like: Tensor,
    scale: float,
    mask: Tensor | None,
    safe: bool = False,
) -> str:
    weights = _weights(site, x, given, scale, mask, like, like.dim() - 1)
    return zero_where_hidden(site, weights, mask) if safe else weights


def _weights(
    site: SiteWriter,
    x: str,
    given: Grid | None,
    scale: float,
    mask: Tensor | None,
    like: Tensor,
    axis: int,
) -> str:
    """Exponentials as integers, over their sum."""
    if given is None:
        (bits, offset), unit, dtype = REAL_EXP, 1.0, torch.float64
        x = site.node('Mul', x, scale) if scale != 1 else x
    else:
        unit, dtype = unit_of(given, scale), torch.float32
        bits, offset = rounded_exp(unit, given.levels)
    if mask is not None:
        added: Any = mask
        if given is not None and site.name_of(mask, site.name) is not None:
            added = site.node('Div', mask, unit)
        elif given is not None:
            added = mask / unit
        x = site.node('Add', x, added)
    largest = site.node('ReduceMax', x, axes=[axis], keepdims=1)
    steps = site.node('Sub', x, largest)
    if given is None:
        steps = site.cast(steps, dtype)
    else:
        steps = site.node('Mul', steps, unit)

    def number(value: float) -> str:
        return site.writer.constant(torch.tensor(value, dtype=dtype))

    powers = site.node('Mul', site.node('Exp', steps), number(2.0**bits))
    powers = site.node('Floor', site.node('Add', powers, number(offset)))
    terms = powers
    if dtype != torch.float64 and like.shape[axis] * 2**bits > 2**MANTISSA:
        terms = site.cast(powers, torch.float64)
    total = site.node('ReduceSum', terms, site.ints([axis]), keepdims=1)
    if terms is not powers or dtype == torch.float64:
        total = site.cast(total, torch.float32)
    if dtype == torch.float64:
        powers = site.cast(powers, torch.float32)
    return site.node('Div', powers, total)


def _double(site: SiteWriter, value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.detach().cpu().double()
    return site.writer.constant(np.asarray(value, np.float64))


def _mean(site: SiteWriter, x: str, lead: Sequence[int], count: int) -> str:
    """Mean of rows of integers or their squares: (*lead, 1), float64."""
    # As many as add up exactly in float32, and those sums in float64.
    run = max(n for n in range(1, EXACT_SQUARES + 1) if count % n == 0)
    axis = len(lead)
    rows = site.reshape(x, (*lead, count // run, run))
    sums = site.node('ReduceSum', rows, site.ints([axis + 1]), keepdims=0)
    sums = site.cast(sums, torch.float64)
    total = site.node('ReduceSum', sums, site.ints([axis]), keepdims=1)
    return site.node('Div', total, _double(site, count))


def _statistics(
    site: SiteWriter, x: str, lead: Sequence[int], count: int, epsilon: float
) -> tuple[str, str]:
    """Mean and inverse deviation of rows of integers: (*lead, 1), float64."""
    mean = _mean(site, x, lead, count)
    squares = _mean(site, site.node('Mul', x, x), lead, count)
    variance = site.node('Sub', squares, site.node('Mul', mean, mean))
    variance = site.node('Add', variance, _double(site, epsilon))
    gain = site.node('Div', _double(site, 1.0), site.node('Sqrt', variance))
    return mean, gain


def _group_norm(
    site: SiteWriter,
    x: str,
    given: Grid,
    like: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> str:
    batch, channels = like.shape[:2]
    count = like.shape[1:].numel() // num_groups
    mean, gain = _statistics(site, x, (batch, num_groups), count, eps / given.scale**2)
    if weight is not None:
        gain = site.node('Mul', gain, _double(site, weight.view(num_groups, -1)))
    offset = site.node('Mul', site.node('Neg', mean), gain)
    if bias is not None:
        offset = site.node('Add', offset, _double(site, bias.view(num_groups, -1)))
    shape = (batch, channels) + (1,) * (like.dim() - 2)
    wide = site.ints((batch, num_groups, channels // num_groups))
    gain, offset = (
        site.cast(site.reshape(site.node('Expand', item, wide), shape), torch.float32)
        for item in (gain, offset)
    )
    return site.node('Add', site.node('Mul', x, gain), offset)


def _layer_norm(
    site: SiteWriter,
    x: str,
    given: Grid,
    like: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> str:
    dims = len(normalized_shape)
    lead = tuple(like.shape[:-dims])
    count = math.prod(normalized_shape)
    mean, gain = _statistics(site, x, lead, count, eps / given.scale**2)
    offset = site.node('Mul', site.node('Neg', mean), gain)
    gain, offset = (site.cast(item, torch.float32) for item in (gain, offset))
    if dims > 1:
        gain, offset = (
            site.reshape(item, lead + (1,) * dims) for item in (gain, offset)
        )
    out = site.node('Add', site.node('Mul', x, gain), offset)
    if weight is not None:
        out = site.node('Mul', out, weight)
    return out if bias is None else site.node('Add', out, bias)


def _resize(
    site: SiteWriter, x: str, given: Grid, like: Tensor, *args: Any, **kwargs: Any
) -> str:
    call = Resize(*args, **kwargs)
    source, target = like.shape[2:], site.out.shape[2:]
    if call.is_dyadic(source, target):
        return site.node('Mul', write_resize(site, x, source, call), given.scale)
    points = call.positions(source, target, like.device)
    rows, columns = (site.value(item.expand(len(like), -1)) for item in points)
    out = interpolate(site, x, like.shape, rows, columns)
    out = site.node('Transpose', out, perm=[0, 2, 1])
    return site.node('Mul', site.reshape(out, site.out.shape), given.scale)


def _average_pool(
    site: SiteWriter, x: str, given: Grid, like: Tensor, *args: Any, **kwargs: Any
) -> str:
    pool = Pool(*args, **kwargs)
    mean = pool_windows(site, x, like.shape[2:], pool, True)
    total = site.node('Round', site.node('Mul', mean, float(pool.area)))
    if pool.varies:
        return site.node('Mul', total, pool.factors(like, given.scale))
    return site.node('Mul', total, given.scale / pool.area)


def _adaptive_pool(
    site: SiteWriter, x: str, given: Grid, like: Tensor, output_size: Any
) -> str:
    source = like.shape[2:]
    sizes = target_sizes(source, output_size)
    rank = like.dim()
    for axis, (n, size) in enumerate(zip(source, sizes), start=2):
        # Of what is last, a product of matrices makes the sums.
        order = [*range(axis), *range(axis + 1, rank), axis]
        moved = site.node('Transpose', x, perm=order)
        sums = site.node('MatMul', moved, members(n, size))
        x = site.node('Transpose', sums, perm=[order.index(i) for i in range(rank)])
    return site.node('Mul', x, factors(source, sizes, given.scale))


# ``write(site, name, grid, example of x, *the call's other arguments)``.
EXACT_OPERATORS: Mapping[str, Callable] = {
    'softmax': _softmax,
    'masked_softmax': _masked_softmax,
    'group_norm': _group_norm,
    'layer_norm': _layer_norm,
    'grid_sample': grid_sample,
    'avg_pool2d': _average_pool,
    **dict.fromkeys(ADAPTIVE, _adaptive_pool),
    **dict.fromkeys(RESIZES, _resize),
}

"""Operators of elements: activations and arithmetic."""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

from ...record.ops import per_axis
from .indices import nonzero
from .translation import (
    TRANSLATIONS,
    SiteWriter,
    axis_of,
    translates,
)


@translates('relu')
def _relu(site, x, inplace=False):
    return site.node('Relu', x)


@translates('relu6')
def _relu6(site, x, inplace=False):
    return site.node('Clip', x, 0.0, 6.0)


@translates('hardtanh')
def _hardtanh(site, x, min_val=-1.0, max_val=1.0, inplace=False):
    return site.node('Clip', x, float(min_val), float(max_val))


@translates('clamp', 'clip')
def _clamp(site, x, min=None, max=None):
    return site.node('Clip', x, min, max)


@translates('clamp_min')
def _clamp_min(site, x, min):
    return site.node('Clip', x, min, None)


@translates('clamp_max')
def _clamp_max(site, x, max):
    return site.node('Clip', x, None, max)


@translates('sigmoid')
def _sigmoid(site, x):
    return site.node('Sigmoid', x)


@translates('silu')
def _silu(site, x, inplace=False):
    return site.node('Mul', x, site.node('Sigmoid', x))


@translates('logsigmoid')
def _logsigmoid(site, x):
    return site.node('Log', site.node('Sigmoid', x))


@translates('tanh')
def _tanh(site, x):
    return site.node('Tanh', x)


@translates('hardsigmoid')
def _hardsigmoid(site, x, inplace=False):
    return site.node('HardSigmoid', x, alpha=1 / 6, beta=0.5)


@translates('hardswish')
def _hardswish(site, x, inplace=False):
    return site.node('HardSwish', x)


@translates('leaky_relu')
def _leaky_relu(site, x, negative_slope=0.01, inplace=False):
    return site.node('LeakyRelu', x, alpha=negative_slope)


@translates('prelu')
def _prelu(site, x, weight):
    slope = weight.view((-1,) + (1,) * (x.dim() - 2)) if weight.numel() > 1 else weight
    return site.node('PRelu', x, slope)


@translates('elu')
def _elu(site, x, alpha=1.0, inplace=False):
    return site.node('Elu', x, alpha=float(alpha))


@translates('celu')
def _celu(site, x, alpha=1.0, inplace=False):
    return site.node('Celu', x, alpha=float(alpha))


@translates('selu')
def _selu(site, x, inplace=False):
    return site.node('Selu', x)


@translates('softplus')
def _softplus(site, x, beta=1, threshold=20):
    if beta == 1:
        return site.node('Softplus', x)
    scaled = site.node('Mul', x, float(beta))
    return site.node('Div', site.node('Softplus', scaled), float(beta))


@translates('mish')
def _mish(site, x, inplace=False):
    return site.node('Mul', x, site.node('Tanh', site.node('Softplus', x)))


@translates('gelu')
def _gelu(site, x, approximate='none'):
    if approximate == 'tanh':
        cube = site.node('Mul', site.node('Mul', x, x), x)
        inner = site.node('Add', x, site.node('Mul', cube, 0.044715))
        inner = site.node('Tanh', site.node('Mul', inner, math.sqrt(2 / math.pi)))
    else:
        inner = site.node('Erf', site.node('Div', x, math.sqrt(2)))
    gate = site.node('Mul', site.node('Add', inner, 1.0), 0.5)
    return site.node('Mul', x, gate)


@translates('glu')
def _glu(site, x, dim=-1):
    axis = axis_of(dim, x.dim())
    halves = site.ints([x.shape[axis] // 2] * 2)
    first, second = site.node('Split', x, halves, outputs=2, axis=axis)
    return site.node('Mul', first, site.node('Sigmoid', second))


@translates('softmax')
def _softmax(site, x, dim=None, _stacklevel=3, dtype=None):
    return site.node('Softmax', x, axis=axis_of(dim, x.dim()))


@translates('masked_softmax')
def _masked_softmax(site, scores, scale, mask, safe=False):
    if scale != 1:
        scores = site.node('Mul', scores, float(scale))
    if mask is not None:
        scores = site.node('Add', scores, mask)
    weights = site.node('Softmax', scores, axis=-1)
    return zero_where_hidden(site, weights, mask) if safe else weights


def zero_where_hidden(site: SiteWriter, weights: str, mask: Tensor | None) -> str:
    """Weights of zero in rows that a mask hides altogether."""
    if mask is None:
        return weights
    if site.name_of(mask, site.name) is not None:
        largest = site.node('ReduceMax', mask, axes=[mask.dim() - 1], keepdims=1)
        hidden = site.node('Equal', largest, site.value(-math.inf))
        return site.node('Where', hidden, site.value(0.0), weights)
    empty = (mask == -math.inf).all(-1, keepdim=True)
    if not empty.any():
        return weights
    return site.node('Where', empty, site.value(0.0), weights)


@translates('additive_mask')
def _additive_mask(site, mask, hides, dtype):
    if mask.dtype != torch.bool:
        return site.cast(mask, dtype)
    chosen = (-math.inf, 0.0) if hides else (0.0, -math.inf)
    return site.node('Where', mask, *map(site.value, chosen))


@translates('merged_masks')
def _merged_masks(site, attn_mask, key_padding_mask, num_heads, padding, dtype):
    found = []
    if attn_mask is not None:
        mask, shape = _additive_mask(site, attn_mask, True, dtype), attn_mask.shape
        found.append(site.reshape(mask, (1, *shape)) if len(shape) == 2 else mask)
    if key_padding_mask is not None:
        mask = _additive_mask(site, key_padding_mask, True, dtype)
        count, keys = key_padding_mask.shape
        mask = site.reshape(mask, (count, 1, 1, keys))
        mask = site.node('Expand', mask, site.ints((count, num_heads, 1, keys)))
        found.append(site.reshape(mask, (count * num_heads, 1, keys)))
    if padding:
        pads = site.ints([0] * 5 + [padding])
        found = [site.node('Pad', mask, pads, site.value(0.0)) for mask in found]
    return found[0] if len(found) == 1 else site.node('Add', *found)


@translates('softmin')
def _softmin(site, x, dim=None, _stacklevel=3, dtype=None):
    return site.node('Softmax', site.node('Neg', x), axis=axis_of(dim, x.dim()))


@translates('log_softmax')
def _log_softmax(site, x, dim=None, _stacklevel=3, dtype=None):
    return site.node('LogSoftmax', x, axis=axis_of(dim, x.dim()))


def _unary(op: str) -> Callable:
    return lambda site, x: site.node(op, x)


for _name, _op in {
    'neg': 'Neg',
    'exp': 'Exp',
    'log': 'Log',
    'sqrt': 'Sqrt',
    'abs': 'Abs',
    'reciprocal': 'Reciprocal',
    'floor': 'Floor',
    'ceil': 'Ceil',
    'round': 'Round',
    'sin': 'Sin',
    'cos': 'Cos',
    'erf': 'Erf',
    'sign': 'Sign',
    'logical_not': 'Not',
    'invert': 'Not',
}.items():
    TRANSLATIONS[_name] = _unary(_op)


@translates('square')
def _square(site, x):
    return site.node('Mul', x, x)


@translates('rsqrt')
def _rsqrt(site, x):
    return site.node('Reciprocal', site.node('Sqrt', x))


@translates('lerp')
def _lerp(site, x, end, weight):
    return site.node('Add', x, site.node('Mul', site.node('Sub', end, x), weight))


@translates('addcmul')
def _addcmul(site, x, first, second, *, value=1):
    product = site.node('Mul', first, second)
    if value != 1:
        product = site.node('Mul', product, float(value))
    return site.node('Add', x, product)


@translates('where')
def _where(site, condition, x=None, y=None):
    if x is None:
        return nonzero(site, condition)
    return site.node('Where', condition, x, y)


@translates('masked_fill')
def _masked_fill(site, x, mask, value):
    return site.node('Where', mask, site.value(value, like=x), x)


def _reduce(op: str) -> Callable:
    def translate(site, x, dim=None, keepdim=False, *, dtype=None):
        dims = range(x.dim()) if dim is None else per_axis(dim, 1)
        axes = [axis_of(d, x.dim()) for d in dims]
        if op == 'Mean' and axes == [2, 3] and x.dim() == 4:
            pooled = site.node('GlobalAveragePool', x)
            return pooled if keepdim else site.reshape(pooled, site.out.shape)
        if x.dtype != site.out.dtype:
            x = site.cast(x, site.out.dtype)  # a sum of booleans counts
        if op == 'Sum':
            return site.node('ReduceSum', x, site.ints(axes), keepdims=int(keepdim))
        return site.node(f'Reduce{op}', x, axes=axes, keepdims=int(keepdim))

    return translate


for _name, _op in {
    'mean': 'Mean',
    'sum': 'Sum',
    'amax': 'Max',
    'amin': 'Min',
}.items():
    TRANSLATIONS[_name] = _reduce(_op)


# By order: the reduction, and whether it takes absolute values.
_NORMS = {
    None: ('L2', False),
    'fro': ('L2', False),
    2: ('L2', False),
    1: ('L1', False),
    math.inf: ('Max', True),
    -math.inf: ('Min', True),
}


@translates('linalg_norm')
def _linalg_norm(site, x, ord=None, dim=None, keepdim=False, *, dtype=None):
    count = x.dim() if dim is None else len(per_axis(dim, 1))
    if ord not in (None, 'fro') and count != 1:
        raise NotImplementedError('the norm of a matrix')
    return _norm(site, x, ord, dim, keepdim, dtype=dtype)


@translates('norm', 'linalg_vector_norm')
def _norm(site, x, p=None, dim=None, keepdim=False, *, ord=None, dtype=None):
    order = p if ord is None else ord
    reduction, is_absolute = _NORMS.get(order, (None, False))
    dims = range(x.dim()) if dim is None else per_axis(dim, 1)
    if reduction is None or dtype is not None:
        raise NotImplementedError(f'order {order}, dtype {dtype}')
    axes = [axis_of(d, x.dim()) for d in dims]
    operand = site.node('Abs', x) if is_absolute else x
    return site.node(f'Reduce{reduction}', operand, axes=axes, keepdims=int(keepdim))


def _quantifier(reduction: str) -> Callable:
    def translate(site, x, dim=None, keepdim=False):
        dims = range(x.dim()) if dim is None else per_axis(dim, 1)
        axes = [axis_of(d, x.dim()) for d in dims]
        if x.dtype != torch.bool:
            raise NotImplementedError('numbers for booleans')
        number = site.cast(x, torch.float32)
        found = site.node(reduction, number, axes=axes, keepdims=int(keepdim))
        return site.cast(found, torch.bool)

    return translate


TRANSLATIONS['any'] = _quantifier('ReduceMax')
TRANSLATIONS['all'] = _quantifier('ReduceMin')


def _extreme(pair: str, reduction: str, index: str) -> Callable:
    def translate(site, x, dim=None, keepdim=False):
        if isinstance(dim, Tensor):
            return site.node(pair, x, dim)
        if dim is None:
            return site.node(reduction, x, axes=list(range(x.dim())), keepdims=0)
        axis, keepdims = axis_of(dim, x.dim()), int(keepdim)
        values = site.node(reduction, x, axes=[axis], keepdims=keepdims)
        return [values, site.node(index, x, axis=axis, keepdims=keepdims)]

    return translate


TRANSLATIONS['max'] = _extreme('Max', 'ReduceMax', 'ArgMax')
TRANSLATIONS['min'] = _extreme('Min', 'ReduceMin', 'ArgMin')


@translates('var')
def _var(site, x, dim=None, unbiased=True, keepdim=False, *, correction=None):
    if isinstance(dim, bool):
        # ``x.var(unbiased)``, of all elements.
        dim, unbiased = None, dim
    dims = range(x.dim()) if dim is None else per_axis(dim, 1)
    axes = [axis_of(d, x.dim()) for d in dims]
    offsets = site.node('Sub', x, site.node('ReduceMean', x, axes=axes, keepdims=1))
    squares = site.node('Mul', offsets, offsets)
    total = site.node('ReduceSum', squares, site.ints(axes), keepdims=int(keepdim))
    lost = int(unbiased) if correction is None else correction
    count = math.prod(x.shape[axis] for axis in axes) - lost
    return site.node('Div', total, float(count))


@translates('std')
def _std(site, x, *args, **kwargs):
    return site.node('Sqrt', _var(site, x, *args, **kwargs))


@translates('scaled_dot_product_attention')
def _attention(
    site,
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    if is_causal or enable_gqa:
        raise NotImplementedError('causal or grouped attention')
    rank = key.dim()
    order = [*range(rank - 2), rank - 1, rank - 2]
    scores = site.node('MatMul', query, site.node('Transpose', key, perm=order))
    scores = site.node('Mul', scores, scale or query.shape[-1] ** -0.5)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = site.node('Where', attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = site.node('Add', scores, attn_mask)
    return site.node('MatMul', site.node('Softmax', scores, axis=-1), value)

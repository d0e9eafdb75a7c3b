"""Operators of elements: activations and arithmetic."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from torch import Tensor

from ...record.ops import per_axis
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
    empty = None if mask is None else (mask == -math.inf).all(-1, keepdim=True)
    if not safe or empty is None or not empty.any():
        return weights
    return site.node('Where', empty, site.value(0.0), weights)


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


def _binary(op: str) -> Callable:
    def translate(site, x, y, *, alpha=1, rounding_mode=None):
        first, second = _operands(site, x, y)
        if alpha != 1:
            second = site.node('Mul', second, alpha)
        if rounding_mode == 'floor':
            return _floored(site, first, second)
        out = site.node(op, first, second)
        return out if rounding_mode is None else _truncated(site, out)

    return translate


def _truncated(site: SiteWriter, x: str) -> str:
    _check_real(site)
    return site.node(
        'Mul', site.node('Sign', x), site.node('Floor', site.node('Abs', x))
    )


def _remainder(site: SiteWriter, x: str, y: str) -> tuple[str, str, str]:
    """C's remainder, that of the divisor's sign, and whether they differ."""
    _check_real(site)
    zero = site.value(0.0)
    rest = site.node('Mod', x, y, fmod=1)
    signs = site.node('Xor', site.node('Less', rest, zero), site.node('Less', y, zero))
    is_zero = site.node('Equal', rest, zero)
    differs = site.node('And', signs, site.node('Not', is_zero))
    return rest, site.node('Where', differs, site.node('Add', rest, y), rest), differs


def _floored(site: SiteWriter, x: str, y: str) -> str:
    """A quotient rounded down, of exact remainders as in PyTorch."""
    rest, _, differs = _remainder(site, x, y)
    quotient = site.node('Div', site.node('Sub', x, rest), y)
    below = site.node('Sub', quotient, 1.0)
    return site.node('Round', site.node('Where', differs, below, quotient))


def _check_real(site: SiteWriter) -> None:
    if not site.out.is_floating_point():
        raise NotImplementedError('integers')


def _operands(site: SiteWriter, x: Any, y: Any) -> tuple[str, str]:
    """Both operands, of one dtype: ONNX promotes none."""
    tensors = [item for item in (x, y) if isinstance(item, Tensor)]
    dtype = torch.result_type(x, y)
    if site.out.is_floating_point() and not dtype.is_floating_point:
        dtype = site.out.dtype  # a quotient of integers is none
    names = []
    for item in (x, y):
        if not isinstance(item, Tensor):
            names.append(site.writer.constant(torch.tensor(item, dtype=dtype)))
        elif item.dtype != dtype:
            names.append(site.cast(item, dtype))
        else:
            names.append(site.value(item))
    assert tensors
    return names[0], names[1]


for _name, _op in {
    'add': 'Add',
    'sub': 'Sub',
    'mul': 'Mul',
    'div': 'Div',
    'truediv': 'Div',
    'maximum': 'Max',
    'minimum': 'Min',
    'lt': 'Less',
    'gt': 'Greater',
    'le': 'LessOrEqual',
    'ge': 'GreaterOrEqual',
    'eq': 'Equal',
    'logical_and': 'And',
    'logical_or': 'Or',
}.items():
    TRANSLATIONS[_name] = _binary(_op)


@translates('and', 'bitwise_and')
def _and(site, x, y):
    return _of_booleans(site, 'And', x, y)


@translates('or', 'bitwise_or')
def _or(site, x, y):
    return _of_booleans(site, 'Or', x, y)


def _of_booleans(site: SiteWriter, op: str, x: Any, y: Any) -> Any:
    if site.out.dtype != torch.bool:
        raise NotImplementedError('bits of integers')
    return site.node(op, x, y)


@translates('rsub')
def _rsub(site, x, y, *, alpha=1):
    second, first = _operands(site, x, y)
    return site.node('Sub', first, second)


@translates('rdiv')
def _rdiv(site, x, y):
    # As PyTorch computes it: the quotient would be rounded once less.
    inverse = site.node('Reciprocal', site.cast(x, site.out.dtype))
    return inverse if _is_one(y) else site.node('Mul', inverse, y)


def _is_one(y: Any) -> bool:
    return not isinstance(y, Tensor) and y == 1


@translates('floor_divide', 'floordiv')
def _floor_divide(site, x, y):
    return _floored(site, *_operands(site, x, y))


@translates('rfloordiv')
def _rfloordiv(site, x, y):
    return _floored(site, *_operands(site, x, y)[::-1])


@translates('remainder', 'mod')
def _mod(site, x, y):
    return _remainder(site, *_operands(site, x, y))[1]


@translates('rmod')
def _rmod(site, x, y):
    return _remainder(site, *_operands(site, x, y)[::-1])[1]


@translates('rpow')
def _rpow(site, x, y):
    exponent, base = _operands(site, x, y)
    return site.node('Pow', base, exponent)


@translates('square')
def _square(site, x):
    return site.node('Mul', x, x)


@translates('pow')
def _pow(site, x, exponent):
    if not isinstance(x, Tensor):
        return _rpow(site, exponent, x)
    if not isinstance(exponent, Tensor) and exponent == 2:
        return site.node('Mul', x, x)
    return site.node('Pow', *_operands(site, x, exponent))


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
def _where(site, condition, x, y):
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

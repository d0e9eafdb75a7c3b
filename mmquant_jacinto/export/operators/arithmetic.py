"""Operators of two operands: arithmetic and comparisons."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .translation import TRANSLATIONS, SiteWriter, translates


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
    **dict.fromkeys(('lt', 'less'), 'Less'),
    **dict.fromkeys(('gt', 'greater'), 'Greater'),
    **dict.fromkeys(('le', 'less_equal'), 'LessOrEqual'),
    **dict.fromkeys(('ge', 'greater_equal'), 'GreaterOrEqual'),
    'eq': 'Equal',
    'logical_and': 'And',
    'logical_or': 'Or',
    'logical_xor': 'Xor',
}.items():
    TRANSLATIONS[_name] = _binary(_op)


@translates('ne', 'not_equal')
def _differ(site, x, y):
    return site.node('Not', site.node('Equal', *_operands(site, x, y)))


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


@translates('pow')
def _pow(site, x, exponent):
    if not isinstance(x, Tensor):
        return _rpow(site, exponent, x)
    if not isinstance(exponent, Tensor) and exponent == 2:
        return site.node('Mul', x, x)
    return site.node('Pow', *_operands(site, x, exponent))

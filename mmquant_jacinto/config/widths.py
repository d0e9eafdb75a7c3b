"""Widths of tensors as a config gives them: a number, or a dict of numbers by kind."""

from collections.abc import Mapping
from typing import Union

from ..errors import QuantizeError, nearest
from ..targets.formats import check_bits

TENSOR_KINDS = ('weight', 'activation', 'sum', 'output')

Bits = Union[int, Mapping[str, int]]

# What sums, outputs, the first and the last layers have at least, unless told.
LEAST_AT_EDGES = 8
# Widths from here on neither fine-tune nor learn their scales unless they are told to:
# hundreds of iterations take fifty times as long as a calibration, for what is often
# nothing.
ENOUGH_BITS = 8


def with_wide_sums(bits: Bits) -> Bits:
    """Widths where additions and outputs keep 8 bits if they are not mentioned.

    What a layer multiplies costs a device by its width; what residual branches add up,
    and what leaves the network, no layer multiplies as it is.
    """
    given = bits if isinstance(bits, Mapping) else dict(weight=bits, activation=bits)
    if given.get('activation', LEAST_AT_EDGES) >= LEAST_AT_EDGES:
        return bits
    return dict(dict(sum=LEAST_AT_EDGES, output=LEAST_AT_EDGES), **given)


def width_of(kind: str, bits: Bits, default: int = 8) -> int:
    """Width of a kind of tensor in a number, or in a dict of numbers by kind."""
    if not isinstance(bits, Mapping):
        return bits
    if kind in ('sum', 'output'):
        return bits.get(kind, bits.get('activation', default))
    return bits.get(kind, default)


def check_override(key: str, value: object) -> None:
    """Checks what gives a module, or a call, its width: False is float.

    Raises:
        QuantizeError: If it is neither a width, nor a dict of widths, nor False.
    """
    if isinstance(value, Mapping) and not value:
        raise QuantizeError(
            f'{key} is empty; use a width, or a dict '
            'of widths such as dict(weight=8), or False for float'
        )
    if value is not False:
        check_widths(key, value)


def check_pattern(pattern: object, value: object) -> None:
    """Checks an entry of ``quantize.overrides``.

    Raises:
        QuantizeError: If it is none.
    """
    if not isinstance(pattern, str):
        raise QuantizeError(
            f'quantize.overrides has the key {pattern!r}, which is no pattern '
            "of module names; use a string, such as 'bbox_head.*'"
        )
    check_override(f'quantize.overrides[{pattern!r}]', value)


def check_widths(key: str, bits: object) -> None:
    """Checks a width, or a dict of widths by kind of tensor.

    Raises:
        QuantizeError: If it is none.
    """
    if not isinstance(bits, Mapping):
        check_bits(key, bits)
        return
    if not bits:
        raise QuantizeError(
            f'{key}={bits!r} is empty; use a width, or a dict of widths such as '
            'dict(weight=8)'
        )
    for kind, value in bits.items():
        if kind not in TENSOR_KINDS:
            raise QuantizeError(
                f'{key}.{kind} is not a kind of tensor; ' + nearest(kind, TENSOR_KINDS)
            )
        check_bits(f'{key}.{kind}', value)

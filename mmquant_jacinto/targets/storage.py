"""Storage: the integer types of a file, and what they hold for zero."""

from __future__ import annotations

from dataclasses import dataclass

UNSIGNED, SIGNED = 'unsigned', 'signed'


@dataclass(frozen=True)
class Storage:
    """The integer type of a tensor, and its zero point.

    Args:
        dtype (str): NumPy's name of the type, or ``'int4'``.
        zero_point (int): What the type stores for zero.
        low (int): Smallest integer of the type.
        high (int): Largest integer of the type.
    """

    dtype: str
    zero_point: int
    low: int
    high: int

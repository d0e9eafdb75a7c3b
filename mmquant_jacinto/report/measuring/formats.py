"""Numeric formats in words."""

from __future__ import annotations

from ...targets.formats import TensorFormat


def describe_format(fmt: TensorFormat) -> str:
    """A format as a page shows it, without its width."""
    words = ['symmetric' if fmt.symmetric else 'with zero point']
    if fmt.per_channel:
        words.append('per channel')
    if fmt.power_of_two:
        words.append('power of two')
    return ', '.join(words)

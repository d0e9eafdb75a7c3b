"""What limits of shapes and attributes ask of a node, in functions that tables share.

Each takes :class:`~mmquant_jacinto.targets.rules.table.Facts` and says whether the
limit holds; None where the file does not tell.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable, Optional

from .table import Facts

Verdict = Optional[bool]


def is_one_of(attribute: str, values: Collection[Any], default: Any) -> Callable:
    """Whether an attribute has one of some values."""
    return lambda facts: facts.get(attribute, default) in values


def all_ones(attribute: str) -> Callable:
    """Whether all numbers of an attribute are 1, as they are by default."""
    return lambda facts: all(n == 1 for n in facts.get(attribute) or [1])


def has_constants(*indices: int) -> Callable:
    """Whether operands are constants, where they are given."""
    return lambda facts: all(
        facts.constant(index) is not None for index in indices if index < facts.count()
    )


def has_rank(*ranks: int) -> Callable:
    """Whether the first operand has one of some numbers of dimensions."""

    def holds(facts: Facts) -> Verdict:
        shape = facts.shape()
        return None if shape is None else len(shape) in ranks

    return holds


def wide_dims(most: int) -> Callable:
    """Whether no more than some dimensions of the first operand are longer than 1."""

    def holds(facts: Facts) -> Verdict:
        shape = facts.shape()
        return None if shape is None else sum(n != 1 for n in shape) <= most

    return holds


def on_last_axes(attribute: str, count: int, default: int) -> Callable:
    """Whether an axis is one of the last ``count``."""

    def holds(facts: Facts) -> Verdict:
        axis, shape = facts.get(attribute, default), facts.shape()
        if axis < 0:
            return -axis <= count
        return None if shape is None else axis >= len(shape) - count

    return holds


def window(facts: Facts) -> tuple[list[int], list[int]]:
    """Kernel and strides of a convolution or pooling."""
    kernel = facts.get('kernel_shape')
    if kernel is None:
        weight = facts.shape(1)
        kernel = [] if weight is None else weight[2:]
    return list(kernel), list(facts.get('strides') or [1] * len(kernel))


def equal_strides(facts: Facts) -> Verdict:
    """Whether the stride is one for all axes."""
    return len(set(window(facts)[1])) <= 1


def is_depthwise(facts: Facts) -> Verdict:
    """Whether each channel is convolved alone."""
    weight, group = facts.shape(1), facts.get('group', 1)
    return None if weight is None else group > 1 and group == weight[0]


def resize_scales(facts: Facts) -> list[float] | None:
    """Factors of a Resize along all dimensions, by its scales or its sizes."""
    before, after = facts.shape(), facts.output_shape()
    scales = facts.constant(2) if facts.count() > 2 else None
    if scales is not None and scales.size:
        return [float(n) for n in scales]
    if before is None or after is None or len(before) != len(after):
        return None
    if any(not a or not b for a, b in zip(before, after)):
        return None
    return [int(b or 0) / int(a or 1) for a, b in zip(before, after)]


def slice_steps(facts: Facts) -> Verdict:
    """Whether a Slice skips no element."""
    steps = facts.constant(4) if facts.count() > 4 else None
    return steps is None or bool((steps == 1).all())

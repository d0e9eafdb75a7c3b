"""Operations: how much each call of a network computes, and what that costs by width.

A multiply-accumulate of integers of ``a`` and ``b`` bits is counted as ``a * b`` bit
operations (Baskin et al., UNIQ, arXiv 1804.10969), so that 16 bits take four times as
long as 8: what TI's matrix unit and dot product instructions of CPUs do. Any other
element that a call makes is counted with its width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from torch import Tensor

from ..execute.behaviour import Behaviour
from ..plan.plan import Plan, Step
from ..record import ops
from ..record.ops import Op
from ..targets.formats import MAX_BITS

MULTIPLY = (*ops.WEIGHTED, ops.MATMUL)


class CountOperations(Behaviour):
    """Runs in float and counts.

    Attributes:
        operations (Dict[str, int]): Multiply-accumulates, or elements, by call site.
    """

    def __init__(self) -> None:
        self.operations: dict[str, int] = {}

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        out = func(*args, **kwargs)
        # Elements that only move take no operation.
        if not step.follows and step.kind != ops.PASS and isinstance(out, Tensor):
            known = self.operations.get(step.chain, 0)
            self.operations[step.chain] = known + _count(step, args, kwargs, out)
        return out


def _count(step: Step, args: tuple, kwargs: dict, out: Tensor) -> int:
    if step.kind in ops.WEIGHTED:
        x, weight, _ = ops.layer_operands(args, kwargs)
        if step.kind == ops.LINEAR:
            return out.numel() * weight.shape[-1]
        # Of a transposed convolution each element of the input meets its kernels.
        elements = x if step.kind == ops.CONV_TRANSPOSE else out
        return elements.numel() * (weight.numel() // weight.shape[0])
    if step.kind == ops.MATMUL:
        operands = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        return out.numel() * operands[0].shape[-1]
    return out.numel()


class Cost:
    """Bit operations of a network at given widths.

    Args:
        plan (Plan): Of the network.
        operations (Mapping[str, int]): See :class:`CountOperations`.
    """

    def __init__(self, plan: Plan, operations: Mapping[str, int]) -> None:
        self.widths = widths_of(plan)
        # Of each call: operations, and the quantizers whose widths multiply.
        self.calls: list[tuple[int, tuple[str | int, ...]]] = []
        self._readers: dict[str, list[int]] = {}
        for name, count in operations.items():
            step = plan.steps.get(name)
            factors = () if step is None else _factors(step)
            for factor in {item for item in factors if isinstance(item, str)}:
                self._readers.setdefault(factor, []).append(len(self.calls))
            self.calls.append((count, factors))

    def total(self) -> float:
        """Bit operations of all calls, at :attr:`widths`."""
        return sum(map(self._of, range(len(self.calls))))

    def of_raising(self, quantizer: str, width: int) -> float:
        """Bit operations that are added where a quantizer gets another width."""
        readers, known = self._readers.get(quantizer, ()), self.widths[quantizer]
        before = sum(map(self._of, readers))
        self.widths[quantizer] = width
        after = sum(map(self._of, readers))
        self.widths[quantizer] = known
        return after - before

    def _of(self, call: int) -> float:
        total, factors = self.calls[call]
        for factor in factors:
            total *= self.widths[factor] if isinstance(factor, str) else factor
        return total


def weight_key(name: str) -> str:
    """A weight quantizer's name, apart from those of activations."""
    return f'weight of {name}'


def widths_of(plan: Plan) -> dict[str, int]:
    """Width of each quantizer of a plan; weights by :func:`weight_key`."""
    return {
        **{spec.name: spec.format.bits for spec in plan.activations},
        **{weight_key(name): spec.format.bits for name, spec in plan.weights.items()},
    }


def _factors(step: Step) -> tuple[str | int, ...]:
    """Quantizers whose widths a call's operations are multiplied by.

    What stays in float counts as the widest integers do.
    """
    first = step.inputs[0] or MAX_BITS
    if step.kind == ops.MATMUL:
        second = step.inputs[1] if len(step.inputs) > 1 else None
        return first, second or MAX_BITS
    if step.kind not in ops.WEIGHTED:
        return (step.output or MAX_BITS,)
    if step.weight is not None:
        return first, weight_key(step.weight)
    return first, MAX_BITS if step.weight_format is None else step.weight_format.bits

"""A latency budget: what is raised to more bits, for the time that it may take.

Each weight and each activation may be raised by itself. What one takes off the noise in
the network's outputs is measured, what it costs follows from the operations of the
calls that read it (:mod:`~mmquant_jacinto.methods.operations`). A call's cost is the
product of the widths of its operands, so that raising one makes the other dearer: what
is raised next is what gains most for its cost as things are, which is the greedy
solution of a knapsack. It is an optimum but for the last one that does not fit, where
costs do not depend on each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...plan.plan import Plan
from ..operations import Cost, weight_key

WEIGHT = 'weight'
# By width: call site, or quantizer of an input, to the noise to signal in the outputs
# that raising its weight, or its activation, to that width takes away.
Gains = Mapping[int, Mapping[str, Mapping[str, float]]]


@dataclass
class _Tensor:
    """A quantizer that may be raised, and the calls that raise it.

    Args:
        kind (str): ``'weight'`` or ``'activation'``.
        calls (List[str]): Call sites, or the name of an input.
        gains (Dict[int, float]): By width.
    """

    kind: str
    calls: list[str] = field(default_factory=list)
    gains: dict[int, float] = field(default_factory=dict)


def raise_within(
    plan: Plan, operations: Mapping[str, int], gains: Gains, latency: float
) -> dict[str, dict[str, int]]:
    """Chooses what is raised.

    Args:
        plan (Plan): With nothing raised.
        operations (Mapping[str, int]): Of each call of the network.
        gains (Gains): What may be raised.
        latency (float): What all may cost, in units of the plan's own cost.

    Returns:
        Dict[str, Dict[str, int]]: Call site, or quantizer of an input, to widths by
        kind, as :class:`~mmquant_jacinto.config.max_drop.Raised` has them.
    """
    cost = Cost(plan, operations)
    room = (latency - 1) * cost.total()
    tensors = _tensors(plan, gains)
    # Largest gain for its cost first; of equals in the order of the network.
    heap: list[tuple[float, int, str, int]] = []

    def push(order: int, name: str, width: int) -> None:
        found = tensors[name].gains
        gain = found[width] - found.get(cost.widths[name], 0.0)
        if width > cost.widths[name] and gain > 0:
            more = cost.of_raising(name, width)
            heapq.heappush(
                heap, (-gain / more if more else -float('inf'), order, name, width)
            )

    for order, (name, tensor) in enumerate(tensors.items()):
        for width in tensor.gains:
            push(order, name, width)
    chosen: dict[str, int] = {}
    while heap:
        ratio, order, name, width = heapq.heappop(heap)
        if width <= cost.widths[name]:
            continue
        more = cost.of_raising(name, width)
        found = tensors[name].gains
        gain = found[width] - found.get(cost.widths[name], 0.0)
        if more and -gain / more > ratio * (1 - 1e-9):
            push(order, name, width)  # it has become dearer
        elif more <= room:
            room -= more
            cost.widths[name] = chosen[name] = width
            for other in found:
                push(order, name, other)
    return _by_call(tensors, chosen)


def _tensors(plan: Plan, gains: Gains) -> dict[str, _Tensor]:
    """What may be raised, by quantizer: tensors that share a grid are one."""
    found: dict[str, _Tensor] = {}
    for width, calls in gains.items():
        for call, kinds in calls.items():
            step = plan.steps.get(call)
            for kind, gain in kinds.items():
                if kind == WEIGHT:
                    name = weight_key(plan.steps[call].weight or '')
                else:
                    name = call if step is None else step.output or ''
                tensor = found.setdefault(name, _Tensor(kind))
                if call not in tensor.calls:
                    tensor.calls.append(call)
                tensor.gains[width] = tensor.gains.get(width, 0.0) + gain
    return found


def _by_call(
    tensors: Mapping[str, _Tensor], chosen: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for name, width in chosen.items():
        for call in tensors[name].calls:
            layers.setdefault(call, {})[tensors[name].kind] = width
    return layers


def latency_of(plan: Plan, base: Plan, operations: Mapping[str, int]) -> float:
    """What a plan costs, in units of another one's cost.

    Args:
        plan (Plan): The plan.
        base (Plan): Of the same network, with nothing raised.
        operations (Mapping[str, int]): Of each call of the network.
    """
    return Cost(plan, operations).total() / Cost(base, operations).total()

"""Open results: what a target computes on without putting it on a grid.

An engine that computes a layer and the function behind it as one operation rounds once,
at the end; so does one that has a function of its own for ``x * sigmoid(x)``. A grid in
between would be noise that the engine does not make, and part what it computes as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..record import ops
from ..record.graph import Site
from ..targets.rules.table import HARD_SWISH, SILU, Rules
from ..targets.target import get_target
from .file_operators import operator_of
from .fusion import Chain, Dataflow

# Functions whose product with their own operand is a function with a name.
_GATES = {'sigmoid': SILU, 'hardsigmoid': HARD_SWISH}

Makers = Mapping[int, Chain]


@dataclass(frozen=True)
class _Function:
    """What a call computes, together with calls that are one with it.

    Args:
        operator (str): In a target's table.
        operands (Tuple[int | None]): Values that it reads.
        calls (FrozenSet[str]): Sites that it is made of.
    """

    operator: str
    operands: tuple[int | None, ...]
    calls: frozenset[str]


def gives_reals(target: str) -> bool:
    """Whether an engine's layers give real numbers to what computes in float.

    One that adds biases to real numbers has them before it puts them on a grid; others
    have integers alone, which a float layer reads as they are.
    """
    engine = get_target(target)
    return engine.has_float_biases or engine.arithmetic.has_real_biases


def open_results(
    flow: Dataflow, chains: Iterable[Chain], rules: Rules
) -> dict[int, str]:
    """Results that are on no grid of their own, and the calls that they are one with.

    Of two layers that an addition reads, the later is left open.

    Args:
        flow (Dataflow): Of the graph.
        chains (Iterable[Chain]): Those that are quantized.
        rules (Rules): Of the target.

    Returns:
        Dict[int, str]: Value to the name of the site that reads it last.
    """
    chains = list(chains)
    makers = {value: chain for chain in chains for value in chain.tail.outputs}
    found: dict[int, str] = {}
    for chain in chains:
        reader = chain.head
        if flow.raw.intersection(chain.tail.outputs):
            continue  # there is no grid at its end
        gate = _gate_of(flow, reader, makers)
        if gate is not None and rules.is_one(_GATES[gate.op]):
            found[gate.outputs[0]] = reader.name
            function = _Function(
                _GATES[gate.op],
                (gate.inputs[0],),
                frozenset((gate.name, reader.name)),
            )
        else:
            function = _Function(
                operator_of(reader),
                tuple(reader.inputs) if _fits(reader) else (),
                frozenset((reader.name,)),
            )
        for value in reversed(function.operands):
            if value is not None and _is_fused(flow, value, makers, function, rules):
                found[value] = reader.name
                break
    return found


def real_results(
    flow: Dataflow, is_float: Callable[[Chain], bool], target: str
) -> set[int]:
    """What layers in float give to functions that would be one with them.

    Args:
        flow (Dataflow): Of the graph.
        is_float (Callable): Whether a chain stays in float.
        target (str): Name of the target.

    Returns:
        Set[int]: Values that are on no grid.
    """
    if not gives_reals(target):
        return set()
    chains = flow.chains.values()
    floats = {v for chain in chains if is_float(chain) for v in chain.tail.outputs}
    return floats.intersection(open_results(flow, chains, get_target(target).rules))


def overwriting_sums(
    flow: Dataflow, opened: Mapping[int, str], rules: Rules
) -> set[str]:
    """Sums that an engine computes as part of a layer, in the other operand's memory.

    It does so where all else that reads the other operand has run before: where the
    sum follows from it.

    Args:
        flow (Dataflow): Of the graph.
        opened (Mapping[int, str]): See :func:`open_results`.
        rules (Rules): Of the target.

    Returns:
        Set[str]: Names of the sites.
    """
    if not rules.drops_pairs_in_sums:
        return set()
    sites = flow.graph.producers()
    makers = {v: chain for chain in flow.chains.values() for v in chain.tail.outputs}
    found = set()
    for value, name in opened.items():
        chain, layer = flow.chains.get(name), makers[value]
        if chain is None or operator_of(chain.head) != 'Add':
            continue
        # A number that is added is no operand.
        other = next((item for item in chain.head.inputs if item != value), None)
        shapes = {layer.tail.shape, chain.head.shape}
        if (
            layer.head.kind == ops.CONV
            and other in sites
            and {sites[other].shape} == shapes
            and not flow.raw.intersection((other, *chain.tail.outputs))
            and other not in flow.leaving
            # A layer cannot read what it overwrites, through nothing either.
            and flow.groups.find(other) not in _groups_of(flow, layer.head.inputs)
            and not _is_seen(flow, other, makers, opened)
            and all(_leads_to(flow, item, name) for item in flow.consumers[other])
        ):
            found.add(name)
    return found


def _groups_of(flow: Dataflow, values: Iterable[int | None]) -> set[int]:
    return {flow.groups.find(value) for value in values if value is not None}


def _is_seen(
    flow: Dataflow, value: int, makers: Makers, opened: Mapping[int, str]
) -> bool:
    """Whether an engine sees by itself that a sum may overwrite an operand.

    So it is with what a layer gives, at once or through a function, and one call reads.
    """
    maker = makers.get(value)
    if maker is None or len(flow.consumers[value]) > 1:
        return False
    is_part = maker.head.name in opened.values() and maker.head.kind != ops.ADD
    return maker.head.kind in ops.WEIGHTED or is_part


def _leads_to(flow: Dataflow, site: Site, name: str) -> bool:
    """Whether a call's results go into another."""
    seen: set[str] = set()
    waiting = [site]
    while waiting:
        item = waiting.pop()
        if item.name == name:
            return True
        if item.name not in seen:
            seen.add(item.name)
            for value in item.outputs:
                waiting += flow.consumers.get(value, ())
    return False


def _gate_of(flow: Dataflow, product: Site, makers: Makers) -> Site | None:
    """The call whose result a product multiplies by that call's own operand."""
    if product.op != 'mul' or len(product.inputs) != 2 or product.is_shared:
        return None
    for value, other in (product.inputs, product.inputs[::-1]):
        maker = None if value is None or other is None else makers.get(value)
        if maker is None or value is None or maker.followers or value in flow.leaving:
            continue
        gate = maker.head
        readers = {reader.name for reader in flow.consumers.get(value, ())}
        is_whole = gate.inputs == [other] and readers == {product.name}
        if gate.op in _GATES and is_whole and not gate.is_shared:
            return gate
    return None


def _is_fused(
    flow: Dataflow, value: int, makers: Makers, function: _Function, rules: Rules
) -> bool:
    """Whether the target computes a function as one with what makes its operand."""
    maker = makers.get(value)
    if maker is None or maker.clip is not None or value in flow.leaving:
        return False
    readers = [reader.name for reader in flow.consumers.get(value, ())]
    is_alone = len(readers) == len(function.calls) and function.calls.issuperset(
        readers
    )
    return is_alone and rules.fuses(operator_of(maker.head), function.operator)


def _fits(reader: Site) -> bool:
    """Whether a call reads one value, or two different activations."""
    values = reader.inputs
    return len(values) == 1 or (len(set(values)) == 2 and None not in values)

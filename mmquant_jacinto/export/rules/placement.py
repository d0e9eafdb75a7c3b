"""Placement: where pairs of Q/DQ stand, and where an engine wants them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from ...targets.rules.table import (
    HARD_SWISH,
    SILU,
    VIOLATION,
    Fusion,
    Pairs,
    Pattern,
    Rules,
)
from .operations import DEQUANTIZE, QUANTIZE, Graph, Grid, Operation

# Nodes of the longest pattern that needs a pair at its end alone: a normalization that
# is written out.
_PATTERN = 16
# Operators whose product with their own operand has a name in the tables.
_GATES = {'Sigmoid': SILU, 'HardSigmoid': HARD_SWISH}


class Fused:
    """Which operations an engine computes together with the one before them.

    Args:
        graph (Graph): Of the file.
        operations (Iterable[Operation]): Of the graph.
        rules (Rules): Of the engine.
    """

    def __init__(
        self, graph: Graph, operations: Iterable[Operation], rules: Rules
    ) -> None:
        self._followers: dict[str, Operation] = {}
        makers = {item.result.name: item for item in operations}
        for item in operations:
            head = makers.get(item.given[0].name) if item.given else None
            if head is None or not rules.fuses(head.op, item.op):
                continue
            readers = graph.readers[head.result.name]
            if len(readers) == 1 and _computes_on_one(item):
                self._followers[head.result.name] = item
        self._heads = {item.result.name for item in self._followers.values()}

    def is_follower(self, operation: Operation) -> bool:
        """Whether it is a part of the operation before it."""
        return operation.result.name in self._heads

    def result_grid(self, operation: Operation) -> Grid | None:
        """The grid of what an operation gives, with all that is fused into it."""
        while operation.result.grid is None:
            follower = self._followers.get(operation.result.name)
            if follower is None:
                return None
            operation = follower
        return operation.result.grid


def _computes_on_one(operation: Operation) -> bool:
    """Whether all operands but the first are constants."""
    return all(value.is_constant or not value.name for value in operation.given[1:])


def missing_pairs(
    graph: Graph, operations: list[Operation], fused: Fused, row: Pairs
) -> Iterator[Operation]:
    """Operations on quantized values whose results are not put on a grid."""
    for operation in operations:
        if operation.op not in row.operators or fused.is_follower(operation):
            continue
        reads = operation.is_quantized and fused.result_grid(operation) is None
        # A layer gives what it gives; others may be parts of a pattern.
        is_layer = row.severity == VIOLATION
        if reads and (is_layer or not _ends_on_grid(graph, operation.result.name)):
            yield operation


def _ends_on_grid(graph: Graph, name: str) -> bool:
    """Whether what is made of a value is quantized a few nodes later."""
    names = {name}
    for _ in range(_PATTERN):
        readers = [node for item in names for node in graph.readers[item]]
        if any(node.op_type == QUANTIZE for node in readers):
            return True
        names = {out for node in readers for out in node.output}
    return False


def split_fusions(
    graph: Graph, operations: list[Operation], row: Fusion
) -> Iterator[tuple[Operation, str]]:
    """Operations with a pair between them and what they would be one with.

    Returns:
        Iterator[Tuple[Operation, str]]: The first, and the name of the follower.
    """
    if row.drops_pairs:
        return
    by_result = {item.result.name: item for item in operations}
    split: set[str] = set()
    for operation in operations:
        if operation.op not in row.operators:
            continue
        end = _behind_pair(graph, operation.result.name)
        follower = None if end is None else _follower(graph, end, row, by_result)
        if follower is not None and follower.output[0] not in split:
            split.add(follower.output[0])
            yield operation, follower.name or follower.output[0]


def split_patterns(
    graph: Graph, operations: list[Operation], row: Pattern
) -> Iterator[tuple[Operation, str]]:
    """Gates with a pair between them and their product with their own operand.

    Returns:
        Iterator[Tuple[Operation, str]]: The gate, and the name of the product.
    """
    for operation in operations:
        if _GATES.get(operation.op) not in row.operators:
            continue
        end = _behind_pair(graph, operation.result.name)
        _, source = graph.grid_of(operation.node.input[0])
        for node in graph.readers[end] if end is not None else ():
            others = [graph.grid_of(name)[1] for name in node.input if name != end]
            if node.op_type == 'Mul' and others == [source]:
                yield operation, node.name or node.output[0]


def _behind_pair(graph: Graph, name: str) -> str | None:
    """What a pair makes of a value that nothing else reads."""
    for wanted in (QUANTIZE, DEQUANTIZE):
        readers = graph.readers[name]
        is_alone = len(readers) == 1 and name not in graph.outputs
        if not is_alone or readers[0].op_type != wanted:
            return None
        name = readers[0].output[0]
    return name


def _follower(
    graph: Graph, name: str, row: Fusion, by_result: dict[str, Operation]
) -> onnx.NodeProto | None:
    readers = graph.readers[name]
    if name in graph.outputs:
        return None
    kinds = sorted(node.op_type for node in readers)
    for gate, pattern in _GATES.items():
        if kinds == sorted((gate, 'Mul')) and pattern in row.followers:
            first, second = sorted(readers, key=lambda node: node.op_type == gate)
            is_product = set(first.input) == {name, second.output[0]}
            return first if is_product else None
    if len(readers) != 1 or readers[0].op_type not in row.followers:
        return None
    operation = by_result[readers[0].output[0]]
    others = [v for v in operation.given if v.name and v.name != name]
    if operation.op == 'Add' and not all(
        v.grid is not None and not v.is_constant for v in others
    ):
        return None  # it is one with the layer that gives the other operand
    return readers[0]

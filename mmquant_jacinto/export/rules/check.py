"""Check: each row of an engine's table, held against each operation of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import inliner

from ...targets.rules import table
from ...targets.rules.table import INPUT, OUTPUT, Rules, Source
from .facts import NodeFacts, Shapes
from .operations import Graph, Grid, Operation, Value
from .placement import Fused, missing_pairs, split_fusions, split_patterns

# Operands that hold weights, and what they are called. Those of sums are constants.
_WEIGHTS = {
    **dict.fromkeys(('Conv', 'ConvTranspose', 'DeformConv', 'Gemm', 'PRelu'), (1,)),
    'BatchNormalization': (1,),
}
# They read a tensor's shape, whatever its grid.
_OF_SHAPES = ('Shape', 'Size')
_BIASES = {'Conv': 2, 'ConvTranspose': 2, 'Gemm': 2, 'DeformConv': 3}


@dataclass(frozen=True)
class Finding:
    """A row that a node breaks.

    Args:
        node (str): Its name, or that of its first result; ``'(file)'``.
        operator (str): Of ONNX, as it is in the file.
        rule (str): What the row is of, such as ``'activations'``.
        found (str): What is there.
        right (str): What would be right.
        source (str): Where that is written.
        severity (str): One of ``targets.rules.table.SEVERITIES``.
    """

    node: str
    operator: str
    rule: str
    found: str
    right: str
    source: str
    severity: str


class Checked:
    """A file as the checks see it.

    Args:
        model (onnx.ModelProto): Any.
        rules (Rules): Of the engine.
    """

    def __init__(self, model: onnx.ModelProto, rules: Rules) -> None:
        if model.functions:
            model = inliner.inline_local_functions(model)
        self.model, self.rules = model, rules
        self.graph = Graph(model)
        self.operations = list(self.graph.operations())
        self.shapes = Shapes(model)
        self.fused = Fused(self.graph, self.operations, rules)

    def rows(self, kind: type, operation: Operation) -> list[Any]:
        """All rows of a kind that name an operation, or else those for any."""
        name = operation.rule_op
        found = [row for row in self.rules.of(kind) if name in row.operators]
        return found or [r for r in self.rules.of(kind) if table.ANY in r.operators]


def check(model: onnx.ModelProto, rules: Rules) -> list[Finding]:
    """Holds a file against an engine's table.

    Args:
        model (onnx.ModelProto): Any ONNX file: with Q/DQ pairs, with QLinear operators
            or in float. Subgraphs of If, Loop and Scan are not looked into.
        rules (Rules): Of the engine.

    Returns:
        List[Finding]: What breaks a row: violations first, each in the file's order.
    """
    checked = Checked(model, rules)
    found = [finding for part in _PARTS for finding in part(checked)]
    return sorted(found, key=lambda item: table.SEVERITIES.index(item.severity))


def _finding(
    node: Any, rule: str, found: str, right: str, source: Source, severity: str
) -> Finding:
    name = node.name or next(iter(node.output), '')
    return Finding(name, node.op_type, rule, found, right, str(source), severity)


def _versions(checked: Checked) -> Iterator[Finding]:
    model = checked.model
    # None where all operators are of somebody else.
    opsets = {o.version for o in model.opset_import if o.domain in ('', 'ai.onnx')}
    for row in checked.rules.of(table.Versions):
        low, high = row.opset
        for opset in opsets:
            if not low <= opset <= high:
                yield Finding(
                    *(table.FILE, '', 'opset', f'opset {opset}'),
                    *(f'opset {low} to {high}', str(row.source), table.VIOLATION),
                )
        if row.ir is not None and model.ir_version > row.ir:
            yield Finding(
                *(table.FILE, '', 'IR', f'IR version {model.ir_version}'),
                *(f'IR version up to {row.ir}', str(row.source), table.VIOLATION),
            )


def _operators(checked: Checked) -> Iterator[Finding]:
    pairs = [Operation(node, node.op_type) for node in checked.graph.pairs()]
    for row in checked.rules.of(table.Known):
        for operation in (*checked.operations, *pairs):
            node = operation.node
            if row.quantized and not operation.is_quantized:
                continue
            is_known = node.op_type in row.operators and node.domain in ('', 'ai.onnx')
            if not is_known:
                name = ':'.join(filter(None, (node.domain, node.op_type)))
                yield _finding(
                    *(node, 'operator', name, _instead(checked, row)),
                    *(row.source, row.severity),
                )


def _instead(checked: Checked, row: Any) -> str:
    return f'an operator on the list; this one {checked.rules.host}'


def _activations(checked: Checked) -> Iterator[Finding]:
    for operation in checked.operations:
        if operation.op in _OF_SHAPES or checked.fused.is_follower(operation):
            continue
        values = {value.name: value.grid for value in _variables(operation)}
        values[operation.result.name] = checked.fused.result_grid(operation)
        for row in checked.rows(table.Activations, operation):
            for name, grid in values.items():
                wrong = _wrong_grid(grid, row.symmetric, row.per_channel, row.types)
                if wrong is not None:
                    yield _finding(
                        operation.node,
                        'activations',
                        f'{name}: {grid}',
                        wrong,
                        row.source,
                        row.severity,
                    )


def _variables(operation: Operation) -> list[Value]:
    return [v for v in operation.given if v.grid is not None and not v.is_constant]


def _wrong_grid(
    grid: Grid | None, symmetric: bool, per_channel: bool, types: tuple[str, ...]
) -> str | None:
    """What a grid should be, where it is not."""
    if grid is None:
        return None
    fits = grid.type in types and (grid.symmetric or not symmetric)
    if fits and (per_channel or not grid.per_channel):
        return None
    right = ' or '.join(types) + (', zero point 0' if symmetric else '')
    return right + ('' if per_channel else ', one scale')


def _inputs(checked: Checked) -> Iterator[Finding]:
    graph = checked.graph
    for row in checked.rules.of(table.Activations):
        if INPUT not in row.operators:
            continue
        for name in graph.inputs:
            for node in graph.readers[name]:
                if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
                    continue
                grid = graph.grid(node)
                wrong = _wrong_grid(grid, row.symmetric, row.per_channel, row.types)
                if wrong is not None:
                    yield _finding(
                        *(node, 'network input', f'{name}: {grid}', wrong),
                        *(row.source, row.severity),
                    )


def _outputs(checked: Checked) -> Iterator[Finding]:
    graph = checked.graph
    for row in checked.rules.of(table.Activations):
        if OUTPUT not in row.operators:
            continue
        for name in sorted(graph.outputs):
            grid = graph.grid_of(name)[0]
            wrong = _wrong_grid(grid, row.symmetric, row.per_channel, row.types)
            if wrong is not None and not graph.readers[name]:
                yield _finding(
                    *(graph.makers[name], 'network output', f'{name}: {grid}', wrong),
                    *(row.source, row.severity),
                )


def _weights(checked: Checked) -> Iterator[Finding]:
    for operation in checked.operations:
        if not operation.is_quantized:
            continue
        for row in checked.rows(table.Weights, operation):
            for index, value in enumerate(operation.given):
                if not value.is_constant or value.grid is None:
                    continue
                if index == _BIASES.get(operation.op):
                    continue
                if index not in _WEIGHTS.get(operation.op, (index,)):
                    continue
                wrong = _wrong_weight(checked, operation, value.grid, row)
                if wrong is not None:
                    found = f'{value.name}: {value.grid}'
                    yield _finding(
                        *(operation.node, 'weights', found, wrong),
                        *(row.source, row.severity),
                    )


def _wrong_weight(
    checked: Checked, operation: Operation, grid: Grid, row: Any
) -> str | None:
    wrong = _wrong_grid(grid, row.symmetric, row.per_channel, row.types)
    if wrong is not None or not grid.per_channel or grid.axis is None:
        return wrong
    facts = NodeFacts(checked.graph, operation, checked.shapes)
    axis = _output_axis(facts) if row.axis is None else row.axis
    shape = facts.shape(1)
    rank = len(shape) if shape is not None else 0
    given = grid.axis + rank if grid.axis < 0 else grid.axis
    if axis is None or given == axis:
        return None
    return f'one scale, or scales along axis {axis}'


def _output_axis(facts: NodeFacts) -> int | None:
    """Axis of the output channels of a layer's weight."""
    if facts.op == 'Gemm':
        return 0 if facts.get('transB', 0) else 1
    if facts.op == 'MatMul':
        shape = facts.shape(1)
        return None if shape is None else len(shape) - 1
    return {'Conv': 0, 'DeformConv': 0, 'ConvTranspose': 1}.get(facts.op)


def _biases(checked: Checked) -> Iterator[Finding]:
    for operation in checked.operations:
        index = _BIASES.get(operation.op, len(operation.given))
        if index >= len(operation.given) or not operation.is_quantized:
            continue
        value = operation.given[index]
        for row in checked.rows(table.Biases, operation):
            if value.name and value.type and value.type not in row.types:
                yield _finding(
                    operation.node,
                    'bias',
                    f'{value.name}: {value.type}',
                    ' or '.join(row.types),
                    row.source,
                    row.severity,
                )


def _limits(checked: Checked) -> Iterator[Finding]:
    nodes = [
        *checked.operations,
        *(
            Operation(node, node.op_type, [checked.graph.value(n) for n in node.input])
            for node in checked.graph.pairs()
        ),
    ]
    for operation in nodes:
        facts = NodeFacts(checked.graph, operation, checked.shapes)
        for row in checked.rules.of(table.Limit):
            if operation.op in row.operators and row.holds(facts) is False:
                shown = ', '.join(filter(None, map(facts.shown, row.shows)))
                yield _finding(
                    *(operation.node, 'limit', shown or 'otherwise', row.right),
                    *(row.source, row.severity),
                )


def _placement(checked: Checked) -> Iterator[Finding]:
    for row in checked.rules.of(table.Pairs):
        for operation in missing_pairs(
            checked.graph, checked.operations, checked.fused, row
        ):
            yield _finding(
                operation.node,
                'pair',
                'no Q/DQ pair behind it',
                'a Q/DQ pair',
                row.source,
                row.severity,
            )
    for kind, split in ((table.Fusion, split_fusions), (table.Pattern, split_patterns)):
        for row in checked.rules.of(kind):
            for operation, follower in split(checked.graph, checked.operations, row):
                yield _finding(
                    operation.node,
                    'fusion',
                    f'a Q/DQ pair between it and {follower}',
                    'none, so that both are one operation',
                    row.source,
                    row.severity,
                )


_PARTS: tuple[Callable[[Checked], Iterator[Finding]], ...] = (
    *(_versions, _operators, _inputs, _outputs, _activations, _weights, _biases),
    *(_placement, _limits),
)

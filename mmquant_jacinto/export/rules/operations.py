"""Operations: an ONNX graph as operators whose operands and results lie on grids.

One form for files with Q/DQ pairs, for those whose operators are QLinear ones, for
weights that are stored as integers or quantized in the file, and for float ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...targets.rules.table import PRODUCT

QUANTIZE, DEQUANTIZE = 'QuantizeLinear', 'DequantizeLinear'
# A grid goes through what only moves elements.
_MOVING = ('Reshape', 'Flatten', 'Transpose', 'Squeeze', 'Unsqueeze', 'Identity')

# Operators with grids of their own: what they compute, for each operand the places of
# (integers, scale, zero point), and of the result's (scale, zero point).
_QLINEAR: dict[str, tuple[str, tuple[tuple[int, int, int], ...], tuple[int, int]]] = {
    'QLinearConv': ('Conv', ((0, 1, 2), (3, 4, 5)), (6, 7)),
    'QLinearMatMul': ('MatMul', ((0, 1, 2), (3, 4, 5)), (6, 7)),
    'QGemm': ('Gemm', ((0, 1, 2), (3, 4, 5)), (7, 8)),
    'QLinearAdd': ('Add', ((0, 1, 2), (3, 4, 5)), (6, 7)),
    'QLinearMul': ('Mul', ((0, 1, 2), (3, 4, 5)), (6, 7)),
    'QLinearSigmoid': ('Sigmoid', ((0, 1, 2),), (3, 4)),
    'QLinearLeakyRelu': ('LeakyRelu', ((0, 1, 2),), (3, 4)),
    'QLinearSoftmax': ('Softmax', ((0, 1, 2),), (3, 4)),
    'QLinearAveragePool': ('AveragePool', ((0, 1, 2),), (3, 4)),
    'QLinearGlobalAveragePool': ('GlobalAveragePool', ((0, 1, 2),), (3, 4)),
}
_BIAS = {'QLinearConv': 8, 'QGemm': 6}
_JOINED = ('QLinearConcat',)


def _type_name(number: int) -> str:
    name = TensorProto.DataType.Name(number).lower()
    return 'float32' if name == 'float' else name


@dataclass
class Grid:
    """Where a value is quantized.

    Args:
        type (str): Of the stored integers, by NumPy's name, or ``'int4'``, ``'uint4'``.
        scale (np.ndarray, optional): One, or one for each channel; None: computed.
        zero (np.ndarray, optional): Zero points likewise; None: computed.
        axis (int, optional): Of the scales, where there are several; None: that of the
            output channels, by what the operator is.
    """

    type: str
    scale: np.ndarray | None
    zero: np.ndarray | None
    axis: int | None = None

    @property
    def per_channel(self) -> bool:
        """bool: Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1

    @property
    def symmetric(self) -> bool:
        """bool: Whether all zero points are 0."""
        return self.zero is not None and not self.zero.any()

    def __str__(self) -> str:
        zeros = 'computed' if self.zero is None else np.unique(self.zero).tolist()[:3]
        shown = zeros[0] if isinstance(zeros, list) and len(zeros) == 1 else zeros
        scales = f', {self.scale.size} scales' if self.per_channel else ''
        is_named = self.per_channel and self.axis is not None
        where = f' along axis {self.axis}' if is_named else ''
        return f'{self.type}, zero point {shown}{scales}{where}'


@dataclass
class Value:
    """An operand or result of an operation.

    Args:
        name (str): In the graph.
        grid (Grid, optional): Where it is quantized, if it is.
        is_constant (bool): Whether it is known before the network runs.
        type (str): Of a constant, as it is stored.
    """

    name: str
    grid: Grid | None = None
    is_constant: bool = False
    type: str = ''


@dataclass
class Operation:
    """A node that computes, in the terms of a float graph.

    Args:
        node (onnx.NodeProto): As it is in the file.
        op (str): What it computes.
        given (List[Value]): Operands.
        result (Value): Its first result.
    """

    node: onnx.NodeProto
    op: str
    given: list[Value] = field(default_factory=list)
    result: Value = field(default_factory=lambda: Value(''))

    @property
    def name(self) -> str:
        """str: Of the node, or of its first result where it has none."""
        return self.node.name or next(iter(self.node.output), '')

    @property
    def rule_op(self) -> str:
        """str: What tables of grids call it."""
        if self.op == 'MatMul' and not any(v.is_constant for v in self.given):
            return PRODUCT
        return self.op

    @property
    def is_quantized(self) -> bool:
        """bool: Whether any operand that is no constant lies on a grid."""
        return any(v.grid is not None and not v.is_constant for v in self.given)


class Graph:
    """A model's main graph, read once.

    Args:
        model (onnx.ModelProto): Any; local functions are to be inlined before.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.constants: dict[str, Any] = {i.name: i for i in graph.initializer}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            self.makers.update(dict.fromkeys(node.output, node))
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
            if node.op_type == 'Constant' and node.attribute:
                self.constants[node.output[0]] = node.attribute[0]
        self.inputs = [i.name for i in graph.input if i.name not in self.constants]
        self.outputs = {item.name for item in graph.output}
        self._fold_names()

    def _fold_names(self) -> None:
        """Names that follow from constants alone."""
        self.fixed = set(self.constants)
        for node in self.model.graph.node:
            if node.input and all(not n or n in self.fixed for n in node.input):
                self.fixed.update(node.output)

    def array(self, name: str) -> np.ndarray | None:
        """A constant's elements, through nodes that only rename it."""
        while name not in self.constants:
            node = self.makers.get(name)
            if node is None or node.op_type != 'Identity':
                return None
            name = node.input[0]
        stored = self.constants[name]
        if isinstance(stored, onnx.TensorProto):
            return numpy_helper.to_array(stored)
        if stored.type == onnx.AttributeProto.TENSOR:
            return numpy_helper.to_array(stored.t)
        return np.asarray(helper.get_attribute_value(stored))

    def type_of(self, name: str) -> str:
        """Name of the type that a constant is stored in."""
        stored = self.constants.get(name)
        if stored is None:
            return ''
        if not isinstance(stored, onnx.TensorProto):
            stored = stored.t
        return _type_name(stored.data_type)

    def operations(self) -> Iterator[Operation]:
        """All nodes that compute, in the file's order; Q/DQ are grids of theirs."""
        for node in self.model.graph.node:
            if node.op_type in (QUANTIZE, DEQUANTIZE, 'Constant'):
                continue
            if node.output and node.output[0] in self.fixed:
                continue
            if node.op_type in _QLINEAR:
                yield self._linear(node)
            elif node.op_type in _JOINED:
                yield self._concatenation(node)
            else:
                yield Operation(
                    node,
                    node.op_type,
                    [self.value(name) for name in node.input],
                    Value(node.output[0], self.grid_behind(node.output[0])),
                )

    def pairs(self) -> Iterator[onnx.NodeProto]:
        """All QuantizeLinear and DequantizeLinear nodes."""
        return (
            node
            for node in self.model.graph.node
            if node.op_type in (QUANTIZE, DEQUANTIZE)
        )

    def value(self, name: str) -> Value:
        """An operand: its grid, and whether it is a constant."""
        grid, source = self.grid_of(name)
        stored = self.type_of(source)
        return Value(name, grid, name in self.fixed, stored)

    def grid_of(self, name: str) -> tuple[Grid | None, str]:
        """The grid that a value was put on, and the value that it was made of."""
        node = self.makers.get(name)
        while node is not None and node.op_type in _MOVING:
            name = node.input[0]
            node = self.makers.get(name)
        if node is None:
            return None, name
        if node.op_type in (DEQUANTIZE, QUANTIZE):
            return self.grid(node), node.input[0]
        # Integers that are read as they are.
        if node.op_type in _QLINEAR:
            return self._linear(node).result.grid, name
        if node.op_type in _JOINED:
            return self._concatenation(node).result.grid, name
        return None, name

    def grid_behind(self, name: str) -> Grid | None:
        """The grid that a value is put on by a node that reads it."""
        for node in self.readers[name]:
            if node.op_type == QUANTIZE:
                return self.grid(node)
        return None

    def grid(self, node: onnx.NodeProto) -> Grid:
        """The grid of a Q or DQ node."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        kind = attributes.get('output_dtype', 0) if node.op_type == QUANTIZE else 0
        return self._grid(node, 0, 1, 2, attributes.get('axis', 1), kind)

    def _grid(
        self,
        node: onnx.NodeProto,
        integers: int,
        scale: int,
        zero: int,
        axis: int | None = None,
        kind: int = 0,
    ) -> Grid:
        names = list(node.input)
        has_zero = zero < len(names) and names[zero]
        stored = self.type_of(names[zero]) if has_zero else ''
        if not stored and kind:
            stored = _type_name(kind)
        if not stored and integers >= 0:
            stored = self.type_of(names[integers])
        zeros = self.array(names[zero]) if has_zero else np.zeros(())
        if zeros is not None and zeros.dtype.kind not in 'iu':
            zeros = zeros.astype(np.int32)  # packed types of ml_dtypes
        return Grid(stored or 'uint8', self.array(names[scale]), zeros, axis)

    def _linear(self, node: onnx.NodeProto) -> Operation:
        """An operator with grids of its own."""
        op, operands, (scale, zero) = _QLINEAR[node.op_type]
        given = [
            Value(
                node.input[places[0]],
                self._grid(node, *places),
                node.input[places[0]] in self.fixed,
                self.type_of(node.input[places[0]]),
            )
            for places in operands
        ]
        bias = _BIAS.get(node.op_type, len(node.input))
        if bias < len(node.input) and node.input[bias]:
            name = node.input[bias]
            given.append(Value(name, None, True, self.type_of(name)))
        result = None
        if scale < len(node.input):
            result = self._grid(node, -1, scale, zero)
        return Operation(node, op, given, Value(node.output[0], result))

    def _concatenation(self, node: onnx.NodeProto) -> Operation:
        given = [
            Value(node.input[i], self._grid(node, i, i + 1, i + 2))
            for i in range(2, len(node.input) - 2, 3)
        ]
        result = Value(node.output[0], self._grid(node, -1, 0, 1))
        return Operation(node, 'Concat', given, result)

"""Facts: what a limit may ask of a node, with the shapes that ONNX infers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference

from .operations import Graph, Operation

Shape = list['int | None']


class Shapes:
    """Shapes of all values of a model, inferred, and which of them the file gives.

    Args:
        model (onnx.ModelProto): Any; it stays as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.stored = {**_shapes(model), **_constants(model)}
        self.known = dict(self.stored)
        try:
            inferred = shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # noqa: B902 - a file that ONNX cannot infer has those it gives
            return
        self.known.update(_shapes(inferred))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    graph = model.graph
    return {
        item.name: [
            dim.dim_value if dim.HasField('dim_value') else None
            for dim in item.type.tensor_type.shape.dim
        ]
        for item in (*graph.input, *graph.value_info, *graph.output)
        if item.type.tensor_type.HasField('shape')
    }


def _constants(model: onnx.ModelProto) -> dict[str, Shape]:
    return {item.name: list(item.dims) for item in model.graph.initializer}


class NodeFacts:
    """See :class:`~mmquant_jacinto.targets.rules.table.Facts`.

    Args:
        graph (Graph): That it is in.
        operation (Operation): What is asked about.
        shapes (Shapes): Of the graph.
    """

    def __init__(self, graph: Graph, operation: Operation, shapes: Shapes) -> None:
        self.graph, self.operation, self.shapes = graph, operation, shapes
        self.op = operation.op
        self._attributes = {
            item.name: helper.get_attribute_value(item)
            for item in operation.node.attribute
            if item.type != onnx.AttributeProto.GRAPH
        }

    def get(self, attribute: str, default: Any = None) -> Any:
        value = self._attributes.get(attribute, default)
        if isinstance(value, bytes):
            return value.decode(errors='replace')
        return list(value) if isinstance(value, (tuple, list)) else value

    def constant(self, index: int) -> np.ndarray | None:
        """Elements; those of a quantized constant are its integers."""
        if index >= self.count() or not self.operation.given[index].is_constant:
            return None
        name = self.operation.given[index].name
        array = self.graph.array(name)
        if array is None:
            array = self.graph.array(self.graph.grid_of(name)[1])
        # It is one, though what it is would have to be computed.
        return np.empty(0) if array is None else array

    def shape(self, index: int = 0) -> Shape | None:
        if index >= self.count():
            return None
        return self.shapes.known.get(self.operation.given[index].name)

    def output_shape(self, index: int = 0) -> Shape | None:
        outputs = self.operation.node.output
        return self.shapes.known.get(outputs[index]) if index < len(outputs) else None

    def count(self) -> int:
        given = self.operation.given
        return max((i + 1 for i, value in enumerate(given) if value.name), default=0)

    def is_quantized(self) -> bool:
        return self.operation.is_quantized

    def has_stored_shape(self, index: int = 0) -> bool:
        return self.operation.given[index].name in self.shapes.stored

    def is_terminal(self) -> bool:
        reads = any(value.name in self.graph.inputs for value in self.operation.given)
        return reads or self.operation.node.output[0] in self.graph.outputs

    def shown(self, what: str) -> str:
        """What to name of the node: see ``Limit.shows``."""
        if what == 'shape':
            return f'shape {self.shape()}'
        if what.startswith('operand '):
            value = self.constant(int(what.partition(' ')[2]))
            if value is None or not value.size:
                return ''
            return f'{what} {value.ravel().tolist()[:8]}'
        value = self.get(what)
        return '' if value is None else f'{what} {value}'

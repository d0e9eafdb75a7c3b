"""The exact twin of a file: convolutions whose sums are those of integers.

Where a function is one with the convolution in front of it, engines add up integers and
compute the function on their sums. ONNX Runtime has no kernel for both and adds up real
numbers, in an order of its own: one rounding in thousands falls the other way, and a
deep network makes half of its outputs of that. ConvInteger gives the sums themselves.
A pair behind such a convolution, which the engine does not round by, is left out.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Metadata: names of the results of such convolutions.
METADATA_KEY = 'exact_sums'


def exact_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose open convolutions are computed on integers.

    Args:
        model (onnx.ModelProto): With activations as UINT8; it is returned itself where
            its metadata name no convolution.
    """
    metadata = {item.key: item.value for item in model.metadata_props}
    names = set(json.loads(metadata.get(METADATA_KEY, '[]')))
    if not names:
        return model
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    writer = _Writer(graph)
    nodes = list(graph.node)
    del graph.node[:]
    unrounded: dict[str, str] = {}  # integers to what they are of
    for node in nodes:
        if node.op_type == 'QuantizeLinear' and node.input[0] in names:
            unrounded[node.output[0]] = node.input[0]
        elif node.input and node.input[0] in unrounded:
            source = [unrounded[node.input[0]]]
            graph.node.append(helper.make_node('Identity', source, node.output))
        else:
            is_open = node.op_type == 'Conv' and node.output[0] in names
            graph.node.extend(writer.integer_nodes(node) if is_open else [node])
    return twin


class _Writer:
    """Writes a convolution anew.

    Args:
        graph (onnx.GraphProto): Gets the constants.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.constants = {item.name: item for item in graph.initializer}

    def integer_nodes(self, conv: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes in place of a convolution; itself where it reads no integers."""
        x, weight = (self._pair(name) for name in conv.input[:2])
        if x is None or weight is None:
            return [conv]
        name, rank = conv.output[0], self.constants[weight.input[0]].dims
        unit = self._array(weight.input[1]) * self._array(x.input[1])
        shape = (1, -1, *(1,) * (len(rank) - 2))
        nodes = [
            helper.make_node(
                'ConvInteger',
                [x.input[0], weight.input[0], x.input[2]],
                [f'{name}:sum'],
                **{a.name: helper.get_attribute_value(a) for a in conv.attribute},
            )
        ]
        total = f'{name}:sum'
        if len(conv.input) > 2 and conv.input[2]:
            bias = self._constant(
                f'{name}:offset', self._bias(conv.input[2], unit), shape
            )
            total = f'{name}:total'
            nodes.append(helper.make_node('Add', [f'{name}:sum', bias], [total]))
        scale = self._constant(f'{name}:unit', unit, shape)
        return [
            *nodes,
            helper.make_node(
                'Cast', [total], [f'{name}:real'], to=onnx.TensorProto.FLOAT
            ),
            helper.make_node('Mul', [f'{name}:real', scale], [name]),
        ]

    def _pair(self, name: str) -> onnx.NodeProto | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type == 'DequantizeLinear' else None

    def _array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def _bias(self, name: str, unit: np.ndarray) -> np.ndarray:
        """A bias in steps of the sums: (C,), int32."""
        stored = self._pair(name)
        if stored is not None:
            return self._array(stored.input[0])
        steps = self._array(name).astype(np.float64) / unit
        return np.rint(steps).astype(np.int32)

    def _constant(self, name: str, array: np.ndarray, shape: tuple[int, ...]) -> str:
        array = array if array.ndim == 0 else array.reshape(shape)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

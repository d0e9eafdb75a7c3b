"""Grids of more than 8 bits, written in elementary operators.

OpenVINO 2026.4 takes QuantizeLinear to 65536 levels for its low precision transforms,
and what comes out has nothing to do with the input: 2 dB of signal to noise behind
three convolutions. Divided, rounded, clipped and multiplied in float32 it is 100 dB.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

_WIDE = (onnx.TensorProto.UINT16, onnx.TensorProto.INT16)


def write_out_wide_grids(model: onnx.ModelProto) -> None:
    """Replaces QuantizeLinear and DequantizeLinear of 16 bits, in place.

    Weights stay integers: of those only a DequantizeLinear is in a file.

    Args:
        model (onnx.ModelProto): Written for OpenVINO.
    """
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node.op_type)
    rounded: dict[str, tuple[str, str]] = {}  # integers to them in float, and the scale
    nodes = []
    for node in graph.node:
        if _is_wide(node, constants) and set(readers[node.output[0]]) == {
            'DequantizeLinear'
        }:
            nodes += _round(node, constants, graph, rounded)
        elif node.op_type == 'DequantizeLinear' and node.input[0] in rounded:
            nodes.append(
                helper.make_node(
                    'Mul', rounded[node.input[0]], node.output, name=node.name
                )
            )
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def has_wide_grids(model: onnx.ModelProto) -> bool:
    """Whether there is any QuantizeLinear to 16 bits in a model."""
    constants = {item.name: item for item in model.graph.initializer}
    return any(_is_wide(node, constants) for node in model.graph.node)


def _is_wide(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    return (
        node.op_type == 'QuantizeLinear'
        and len(node.input) > 2
        and node.input[2] in constants
        and constants[node.input[2]].data_type in _WIDE
    )


def _round(
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    graph: onnx.GraphProto,
    rounded: dict[str, tuple[str, str]],
) -> list[onnx.NodeProto]:
    """A QuantizeLinear in float32, its zero point left out."""
    name = node.output[0]
    zero = numpy_helper.to_array(constants[node.input[2]])
    limits = np.iinfo(zero.dtype)
    for key, value in (('low', limits.min), ('high', limits.max)):
        bound = np.float32(int(value) - int(zero))
        graph.initializer.append(numpy_helper.from_array(bound, f'{name}:{key}'))
    steps = [
        ('Div', [node.input[0], node.input[1]], f'{name}:steps'),
        ('Round', [f'{name}:steps'], f'{name}:rounded'),
        ('Clip', [f'{name}:rounded', f'{name}:low', f'{name}:high'], f'{name}:clipped'),
    ]
    rounded[name] = (f'{name}:clipped', node.input[1])
    return [helper.make_node(op, given, [out], name=out) for op, given, out in steps]

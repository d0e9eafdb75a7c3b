"""The rounded twin of a file: a float model with ranges, as its importer computes it.

A file whose ranges are Clip nodes is a float model; integers are made of it by the
importer of its engine, which takes each range for a grid. The twin puts the values of
each clip on the grid that the checkpoint has there, so that the two can be compared:
without, all that differs between them is what quantization itself does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...targets.formats import HALF_AWAY, HALF_EVEN, HALF_UP

# Metadata: the step of the grid that each clip stands for, and how it is rounded to.
METADATA_KEY = 'grids'
# Of one operand; targets.fixed_point has the same.
_FUNCTIONS = ('Sigmoid', 'Tanh', 'Exp')
HALF = 'rounded_twin:half'


def rounded_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that rounds behind each clip.

    Args:
        model (onnx.ModelProto): Any; it is returned itself where its metadata name no
            grids.
    """
    metadata = {item.key: item.value for item in model.metadata_props}
    grids = json.loads(metadata.get(METADATA_KEY, '{}'))
    if not grids:
        return model
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    graph = twin.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(0.5), HALF))
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        name = node.output[0]
        if node.op_type in _FUNCTIONS:
            graph.node.extend(_once_rounded(node))
            continue
        if name not in grids:
            graph.node.append(node)
            continue
        step, rounding = grids[name]
        unit = numpy_helper.from_array(np.float32(step), f'{name}:step')
        graph.initializer.append(unit)
        node.output[0] = f'{name}:clipped'
        graph.node.append(node)
        graph.node.extend(_rounding(name, unit.name, rounding))
    return twin


def _once_rounded(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """A function in float64, rounded to float32: as the checkpoint's test has it."""
    (x,), (name,) = node.input, node.output
    double, result = f'{name}:double', f'{name}:result'
    to = onnx.TensorProto
    yield helper.make_node('Cast', [x], [double], double, to=to.DOUBLE)
    yield helper.make_node(node.op_type, [double], [result], result)
    yield helper.make_node('Cast', [result], [name], f'{name}:Cast', to=to.FLOAT)


def _rounding(name: str, step: str, rounding: str) -> Iterator[onnx.NodeProto]:
    """From the clipped value to that on the grid, which gets the name."""

    def node(op: str, inputs: list[str], to: str) -> onnx.NodeProto:
        # The clip bears the name of its result.
        return helper.make_node(op, inputs, [to], f'{to}:{op}')

    steps, rounded = f'{name}:steps', f'{name}:rounded'
    yield node('Div', [f'{name}:clipped', step], steps)
    if rounding == HALF_EVEN:
        yield node('Round', [steps], rounded)
    elif rounding == HALF_UP:
        yield node('Add', [steps, HALF], f'{name}:above')
        yield node('Floor', [f'{name}:above'], rounded)
    else:
        assert rounding == HALF_AWAY
        yield node('Abs', [steps], f'{name}:size')
        yield node('Add', [f'{name}:size', HALF], f'{name}:above')
        yield node('Floor', [f'{name}:above'], f'{name}:floor')
        yield node('Sign', [steps], f'{name}:sign')
        yield node('Mul', [f'{name}:floor', f'{name}:sign'], rounded)
    yield node('Mul', [rounded, step], name)

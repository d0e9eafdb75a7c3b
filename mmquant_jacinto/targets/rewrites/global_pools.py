"""Global pools between grids that ONNX Runtime's INT8 kernel refuses to run.

From one unit of its sum to steps of its output there may be no factor of 256 or more,
nor one below 2^-32: means that are next to zero, beside values that are not, as behind
a normalization. Such a sum is zero, or beyond the ends of the grid.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

LEAST, MOST = 2.0**-32, 256.0  # the second is refused too


def keep_off_the_kernel(model: onnx.ModelProto) -> None:
    """Lets ONNX Runtime compute such pools in real numbers, in place.

    They are then means of integers, which are exact, and are scaled behind.

    Args:
        model (onnx.ModelProto): In QDQ form, with the shapes that are not free.
    """
    graph = model.graph
    values = {item.name: item for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pools = [node for node in graph.node if node.op_type in _POOLS]
    sizes = _sizes(model) if pools else {}
    for node in pools:
        source, size = makers.get(node.input[0]), sizes.get(node.input[0])
        behind = _first_reader(node.output[0], readers)
        if source is None or source.op_type != 'DequantizeLinear' or behind is None:
            continue
        if size is None or not _is_of_all(node, size):
            continue
        if behind.op_type != 'QuantizeLinear':
            continue
        given, wanted = (
            float(numpy_helper.to_array(values[item.input[1]]))
            for item in (source, behind)
        )
        factor = given / (wanted * np.prod(size))
        if not LEAST <= factor < MOST:
            _scale_behind(graph, node, source, given)


_POOLS = ('GlobalAveragePool', 'AveragePool')
# ONNX Runtime moves a QuantizeLinear in front of these.
_MOVES = ('Reshape', 'Squeeze', 'Unsqueeze', 'Flatten', 'Transpose')


def _first_reader(
    name: str, readers: dict[str, list[onnx.NodeProto]]
) -> onnx.NodeProto | None:
    """What reads a tensor, alone, behind whatever moves its elements."""
    while len(readers.get(name, [])) == 1:
        (node,) = readers[name]
        if node.op_type not in _MOVES:
            return node
        name = node.output[0]
    return None


def _is_of_all(pool: onnx.NodeProto, size: list[int]) -> bool:
    """Whether a pool averages whole maps, of a size."""
    if pool.op_type == 'GlobalAveragePool':
        return True
    given = {item.name: helper.get_attribute_value(item) for item in pool.attribute}
    return given['kernel_shape'] == size and not any(given.get('pads', ()))


def _sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Height and width of maps, by tensor."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for item in (*graph.input, *graph.value_info):
        dims = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        if len(dims) > 2 and all(dims[2:]):
            found[item.name] = dims[2:]
    return found


def _scale_behind(
    graph: onnx.GraphProto, pool: onnx.NodeProto, source: onnx.NodeProto, scale: float
) -> None:
    name = pool.output[0]
    unit, factor = (
        numpy_helper.from_array(np.asarray(value, np.float32), f'{name}:{kind}')
        for kind, value in (('unit', 1.0), ('scale', scale))
    )
    graph.initializer.extend([unit, factor])
    steps = helper.make_node(
        'DequantizeLinear',
        [source.input[0], unit.name, *source.input[2:]],
        [f'{name}:steps'],
        f'{name}:steps',
    )
    scaled = helper.make_node(
        'Mul', [f'{name}:mean', factor.name], [name], f'{name}:scaled'
    )
    pool.input[0], pool.output[0] = f'{name}:steps', f'{name}:mean'
    place = list(graph.node).index(pool)
    graph.node.insert(place + 1, scaled)
    graph.node.insert(place, steps)

"""Convolutions of single points with a stride, as OpenVINO computes them in integers.

Its ``StridesOptimization`` takes the stride of 1 x 1 convolutions out of them, where
all that read a tensor have one, by a pooling between the integers and their
dequantization; the convolutions then run in float, and the addition behind them
leaves out another pair (OpenVINO 2026.4: the first two of a stage in ResNets of Caffe's
style).
A pooling of single points behind the dequantization is the same, in integers.
"""

from __future__ import annotations

import onnx
from onnx import helper


def pool_strided_points(model: onnx.ModelProto) -> None:
    """Puts the strides of 1 x 1 convolutions into poolings in front, in place.

    Args:
        model (onnx.ModelProto): In QDQ form.
    """
    graph = model.graph
    shapes = {item.name: list(item.dims) for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = list(graph.node)
    for name, found in readers.items():
        strides = [
            item for node in found if (item := _strides(node, name, makers, shapes))
        ]
        if len(strides) < len(found) or len({tuple(s.ints) for s in strides}) > 1:
            continue
        pool = helper.make_node(
            *('MaxPool', [name], [f'{name}/every'], f'{name}/every'),
            kernel_shape=[1] * len(strides[0].ints),
            strides=list(strides[0].ints),
        )
        for node, item in zip(found, strides):
            node.input[0] = pool.output[0]
            item.ints[:] = [1] * len(item.ints)
        nodes.insert(nodes.index(makers[name]) + 1, pool)
    if len(nodes) > len(graph.node):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(nodes)


def _strides(
    node: onnx.NodeProto,
    name: str,
    makers: dict[str, onnx.NodeProto],
    shapes: dict[str, list],
) -> onnx.AttributeProto | None:
    """The strides of a convolution of single points of ``name``, if it is quantized."""
    source, weight = (makers.get(item) for item in (*node.input, '', '')[:2])
    if node.op_type != 'Conv' or source is None or weight is None:
        return None
    kinds = {source.op_type, weight.op_type}
    if node.input[0] != name or kinds != {'DequantizeLinear'}:
        return None
    found = {item.name: item for item in node.attribute}
    kernel = shapes.get(weight.input[0], [0])[2:]
    is_point = bool(kernel) and all(size == 1 for size in kernel)
    is_padded = 'pads' in found and any(found['pads'].ints)
    if not is_point or is_padded or 'strides' not in found:
        return None
    strides = found['strides']
    return strides if any(stride > 1 for stride in strides.ints) else None

"""Zero points of weights, one for each: what ``session.x64quantprecision`` needs.

On processors without VNNI that option turns INT8 weights into UINT8 ones and writes a
new zero point beside each, under a name made of the old one's. Where two weights share
theirs, ONNX Runtime 1.30 to 1.32 refuse the file (1.15 takes it).
"""

from __future__ import annotations

import onnx


def separate_zero_points(model: onnx.ModelProto) -> None:
    """Gives each stored weight a zero point of its own, in place.

    Args:
        model (onnx.ModelProto): In QDQ form.
    """
    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    taken = set()
    for node in graph.node:
        if node.op_type != 'DequantizeLinear' or len(node.input) < 3:
            continue
        weight, zero_point = node.input[0], node.input[2]
        if weight not in stored or zero_point not in stored:
            continue
        if zero_point in taken:
            own = onnx.TensorProto()
            own.CopyFrom(stored[zero_point])
            own.name = f'{node.output[0]}:zero_point'
            graph.initializer.append(own)
            node.input[2] = own.name
        taken.add(zero_point)

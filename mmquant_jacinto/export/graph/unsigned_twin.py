"""The unsigned twin of a file: the same numbers, in types that ONNX Runtime is fast at.

On x86 it has integer kernels for UINT8 activations alone and computes signed ones in
float, which rounds otherwise. A pair of Q/DQ gives the same numbers whether its
integers are stored from -128 with zero point 0 or from 0 with zero point 128.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import numpy_helper

ZERO = 'unsigned_twin:zero_point'


def unsigned_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose pairs from real numbers to INT8 and back are of UINT8.

    Args:
        model (onnx.ModelProto): Any; it is returned itself where there are none.
    """
    pairs = _signed_pairs(model)
    if not pairs:
        return model
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    twin.graph.initializer.append(numpy_helper.from_array(np.uint8(128), ZERO))
    for item in twin.graph.value_info:
        if item.name in pairs:
            item.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in twin.graph.node:
        ends = {'QuantizeLinear': node.output, 'DequantizeLinear': node.input}
        if pairs.intersection(ends.get(node.op_type, ())):
            node.input[2] = ZERO
    return twin


def _signed_pairs(model: onnx.ModelProto) -> set[str]:
    """Names of INT8 values, zero point 0, that one Q makes and only DQ read."""
    zeros = {
        item.name
        for item in model.graph.initializer
        if item.data_type == onnx.TensorProto.INT8
        and not item.dims
        and not numpy_helper.to_array(item).any()
    }
    readers = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {item.name for item in model.graph.output}
    return {
        node.output[0]
        for node in model.graph.node
        if _has_zero(node, 'QuantizeLinear', zeros)
        and node.output[0] not in outputs
        and all(
            _has_zero(reader, 'DequantizeLinear', zeros)
            for reader in readers[node.output[0]]
        )
    }


def _has_zero(node: onnx.NodeProto, op: str, zeros: set[str]) -> bool:
    return node.op_type == op and len(node.input) > 2 and node.input[2] in zeros

"""Dynamic: a file that takes images of any size that the model's strides divide."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from ...errors import QuantizeError

FREE = ('batch', None, 'height', 'width')
# Their operands hold sizes of this trace.
_SIZED = ('Reshape', 'Expand', 'Tile', 'NonMaxSuppression')


def free_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    """Lets batch, height and width of the input free, in place.

    Convolutions, pooling, and resizing by whole factors follow any size; what was
    written with a size of its own does not.

    Args:
        model (onnx.ModelProto): Written for one size.

    Raises:
        QuantizeError: If something in it holds for one size alone; it says what.
    """
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if _is_sized(node, constants):
            raise QuantizeError(
                f'--dynamic: {node.name} ({node.op_type}) depends on the size of the '
                'image; export one file for each size, with --shape'
            )
    for given in graph.input:
        dims = given.type.tensor_type.shape.dim
        if len(dims) != len(FREE):
            raise QuantizeError(
                f'--dynamic: the input {given.name} is no image of shape (N, C, H, W); '
                'export it without --dynamic'
            )
        for dim, name in zip(dims, FREE):
            if name is not None:
                own = len(graph.input) > 1 and name != 'batch'
                dim.Clear()
                dim.dim_param = f'{given.name}:{name}' if own else name
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        channels = [dim.dim_value for dim in dims]
        for index, dim in enumerate(dims):
            dim.Clear()
            if index == 1:
                dim.dim_value = channels[1]
            else:
                dim.dim_param = 'batch' if index == 0 else f'{output.name}:{index}'
    return model


def _is_sized(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == 'Resize':
        # By sizes, in place of factors.
        return len(node.input) > 3 and bool(node.input[3])
    if node.op_type == 'Slice' and node.input[3] in constants:
        axes = numpy_helper.to_array(constants[node.input[3]])
        ends = numpy_helper.to_array(constants[node.input[2]])
        fixed = [axis for axis, end in zip(axes, ends) if axis != 1 and end < 2**60]
        return bool(fixed)
    return node.op_type in _SIZED

"""ONNX files written by hand, node by node: what a checker is tried on."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class HandMade:
    """A graph that grows; each method returns the name of what it added.

    Examples:
        >>> made = HandMade()
        >>> x = made.pair(made.input(1, 3, 8, 8), 'int8')
        >>> made.output(made.pair(made.conv(x, made.weight(4, 3, 1, 1)), 'uint8', 3))
        >>> made.model()
    """

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.outputs = [], [], [], []

    def _unique(self, name):
        return f'{name}_{len(self.nodes) + len(self.constants)}'

    def input(self, *shape, dtype=TensorProto.FLOAT):
        name = f'images{len(self.inputs) or ""}'
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, value, dtype=None):
        name = self._unique('constant')
        array = np.asarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op, *given, name=None, outputs=1, domain='', **attributes):
        name = name or self._unique(op)
        results = [name, *(f'{name}:{i}' for i in range(1, outputs))]
        self.nodes.append(
            helper.make_node(
                op, list(given), results, name=name, domain=domain, **attributes
            )
        )
        return name if outputs == 1 else results

    def pair(self, x, dtype='int8', zero=0, scale=0.05, **attributes):
        """Q and DQ, of one scale or of several."""
        scales = self.constant(scale, np.float32)
        zeros = self.constant(np.full(np.shape(scale), zero), dtype)
        quantized = self.node('QuantizeLinear', x, scales, zeros, **attributes)
        return self.node('DequantizeLinear', quantized, scales, zeros, **attributes)

    def weight(self, *shape, dtype='int8', axis=None, zero=0, low=-3):
        """Integers and a DQ, with a scale for each element of an axis."""
        integers = np.arange(np.prod(shape)).reshape(shape) % 7 + low
        scale = np.float32(0.1) if axis is None else np.full(shape[axis], 0.1, 'f4')
        given = [
            self.constant(integers, dtype),
            self.constant(scale),
            self.constant(np.full(np.shape(scale), zero), dtype),
        ]
        along = {} if axis is None else dict(axis=axis)
        return self.node('DequantizeLinear', *given, **along)

    def bias(self, count, dtype='float32'):
        """Real numbers, or INT32 and a DQ."""
        if dtype == 'float32':
            return self.constant(np.zeros(count), 'float32')
        given = [self.constant(np.zeros(count), 'int32'), self.constant(0.005, 'f4')]
        return self.node('DequantizeLinear', *given)

    def conv(self, x, *operands, op='Conv', **attributes):
        return self.node(op, x, *operands, **attributes)

    def output(self, name, *shape):
        self.outputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or None)
        )
        return name

    def model(self, opset=17, ir=8, infer=True):
        """The model; with the shapes of all its tensors, or without."""
        graph = helper.make_graph(
            self.nodes, 'made', self.inputs, self.outputs, self.constants
        )
        opsets = [helper.make_opsetid('', opset)]
        if any(node.domain for node in self.nodes):
            opsets.append(helper.make_opsetid('com.microsoft', 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        return onnx.shape_inference.infer_shapes(model) if infer else model

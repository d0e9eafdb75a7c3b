"""Graph writer: an ONNX graph that grows node by node, with readable names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ...targets.grid import Grid
from ...targets.storage import Storage

_ONNX_DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}
# The first opset with integers of 4 and 16 bits, the one with deformable convolutions,
# and one that today's engines all read.
WIDE_OPSET, DEFORM_OPSET, COMMON_OPSET = 21, 19, 17
# From here on axes of reductions are an operand.
_AXES_OPSET = 18
_REDUCTIONS = ('ReduceMax', 'ReduceMin', 'ReduceMean', 'ReduceL1', 'ReduceL2')
# TIDL reads opset 19 in files of the older form.
_IR_VERSIONS = {COMMON_OPSET: 8, DEFORM_OPSET: 8, WIDE_OPSET: 10}


def onnx_dtype(dtype: torch.dtype) -> int:
    """ONNX's number for a dtype of PyTorch."""
    return _ONNX_DTYPES[dtype]


# What an optimizer may take away between two grids: what moves or bounds elements, and
# arithmetic with these constants.
_REMOVABLE = frozenset(
    'Identity Dropout Cast Relu Clip Reshape Flatten Transpose Squeeze Unsqueeze Slice '
    'Split Gather Expand Tile Pad MaxPool Concat'.split()
)
_NEUTRAL = {'Mul': 1.0, 'Div': 1.0, 'Pow': 1.0, 'Add': 0.0, 'Sub': 0.0}


class GraphWriter:
    """Writes nodes and constants; one of each, however often it is asked for.

    Attributes:
        quantized (Dict[str, Tuple[str, Grid]]): Name of a dequantized tensor to
            that of its integers, and their grid.
        exact_sums (List[str]): Results of layers that are one with what reads them.
        opset (int): The oldest that has all that was written.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.quantized: dict[str, tuple[str, Grid]] = {}
        self.exact_sums: list[str] = []
        self.opset = COMMON_OPSET
        self._names: dict[str, int] = {}
        self._constants: dict[tuple, str] = {}
        self._producers: dict[str, onnx.NodeProto] = {}

    def unique(self, name: str) -> str:
        """``name``, or ``name`` and a number where it is taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if not count else self.unique(f'{name}~{count}')

    def add_input(self, name: str, tensor: Tensor) -> str:
        """An input of the graph, of the tensor's dtype and shape."""
        name = self.unique(name)
        self.inputs.append(
            helper.make_tensor_value_info(
                name, onnx_dtype(tensor.dtype), list(tensor.shape)
            )
        )
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """Adds a node.

        Args:
            op (str): Operator of ONNX.
            inputs (Sequence[str]): Names; '' for one left out.
            name (str): Of the node and of its first output.
            outputs (int): How many results it has.
            **attributes: Of the operator.

        Returns:
            str | List[str]: Name of the result, a list where there are more.
        """
        name = self.unique(name)
        results = [name] + [self.unique(f'{name}:{i}') for i in range(1, outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), results, name=name, **attributes)
        )
        self._producers.update(dict.fromkeys(results, self.nodes[-1]))
        return name if outputs == 1 else results

    def grid_behind(self, name: str) -> Grid | None:
        """The grid of a value, but for nodes that an optimizer may take away."""
        while name not in self.quantized:
            source = self._removable_operand(name)
            if source is None:
                return None
            name = source
        return self.quantized[name][1]

    def _removable_operand(self, name: str) -> str | None:
        """What the node that makes a value makes it of, if it may be taken away."""
        node = self._producers.get(name)
        if node is None or node.op_type in _REMOVABLE:
            return None if node is None else node.input[0]
        neutral = _NEUTRAL.get(node.op_type)
        if neutral is None:
            return None
        first, second = node.input
        if self._is_all(second, neutral):
            return first
        commutes = node.op_type in ('Add', 'Mul')
        return second if commutes and self._is_all(first, neutral) else None

    def _is_all(self, name: str, value: float) -> bool:
        constant = self.initializers.get(name)
        array = None if constant is None else numpy_helper.to_array(constant)
        return array is not None and bool((array == value).all())

    def constant(self, value: Any, name: str = 'constant') -> str:
        """A constant; equal ones of one name are stored once.

        Args:
            value (np.ndarray | Tensor | number): Its value.
            name (str): Its name, if it is not there yet.
        """
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
        # Those of one name: a weight that is all zero is not another's bias.
        key = (name, array.dtype.str, array.shape, array.tobytes())
        known = self._constants.get(key)
        if known is None:
            known = self._constants[key] = self.unique(name)
            self.initializers[known] = numpy_helper.from_array(
                np.ascontiguousarray(array).reshape(array.shape), known
            )
        return known

    def integers(self, value: np.ndarray, storage: Storage, name: str) -> str:
        """A constant of a stored integer type, INT4 among them."""
        if storage.dtype != 'int4':
            if storage.dtype.endswith('16'):
                self.require(WIDE_OPSET)
            return self.constant(value.astype(storage.dtype), name)
        self.require(WIDE_OPSET)
        name = self.unique(name)
        self.initializers[name] = helper.make_tensor(
            name, TensorProto.INT4, value.shape, value.astype(np.int8).ravel().tolist()
        )
        return name

    def quantize(self, x: str, grid: Grid, storage: Storage, name: str) -> str:
        """QuantizeLinear: real numbers to integers."""
        return self.node(
            'QuantizeLinear', [x, *self._parameters(grid, storage)], f'{name}:int'
        )

    def dequantize(self, x: str, grid: Grid, storage: Storage, name: str) -> str:
        """DequantizeLinear: integers to real numbers; remembers the pair."""
        result = self.dequantize_unseen(x, grid, storage, name)
        self.quantized[result] = (x, grid)
        return result

    def dequantize_unseen(self, x: str, grid: Grid, storage: Storage, name: str) -> str:
        """DequantizeLinear of a pair that the engine leaves out."""
        return self.node(
            'DequantizeLinear', [x, *self._parameters(grid, storage)], name
        )

    def _parameters(self, grid: Grid, storage: Storage) -> tuple[str, str]:
        scale = self.constant(np.float32(grid.scale), 'scale')
        zero_point = np.asarray(storage.zero_point)
        return scale, self.integers(zero_point, storage, 'zero_point')

    def require(self, opset: int) -> None:
        """Says that what is written is in no older opset."""
        self.opset = max(self.opset, opset)

    def build(
        self,
        outputs: Mapping[str, tuple[str, Tensor]],
        name: str,
        metadata: Mapping[str, Any],
    ) -> onnx.ModelProto:
        """The model, as it was written.

        Args:
            outputs (Mapping[str, Tuple[str, Tensor]]): Name of an output to
                (name of the tensor, an example of it).
            name (str): Of the graph.
            metadata (Mapping[str, Any]): Strings, or what JSON can say.
        """
        infos = []
        for output, (source, tensor) in outputs.items():
            self.nodes.append(
                helper.make_node('Identity', [source], [output], name=output)
            )
            infos.append(
                helper.make_tensor_value_info(
                    output, onnx_dtype(tensor.dtype), list(tensor.shape)
                )
            )
        self._rename_outputs(outputs)
        if self.opset >= _AXES_OPSET:
            self._move_axes()
        graph = helper.make_graph(
            self.nodes, name, self.inputs, infos, list(self.initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid('', self.opset)],
            ir_version=_IR_VERSIONS[self.opset],
            producer_name='mmquant_jacinto',
            producer_version=metadata.get('version', ''),
        )
        helper.set_model_props(
            model,
            {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in metadata.items()
            },
        )
        return model

    def _move_axes(self) -> None:
        for node in self.nodes:
            if node.op_type in _REDUCTIONS:
                (axes,) = [item for item in node.attribute if item.name == 'axes']
                node.attribute.remove(axes)
                node.input.append(
                    self.constant(np.asarray(axes.ints, np.int64), 'shape')
                )

    def _rename_outputs(self, outputs: Mapping[str, tuple[str, Tensor]]) -> None:
        """Lets a tensor bear the output's name, where it is one output alone."""
        sources = [source for source, _ in outputs.values()]
        producers = {name for node in self.nodes for name in node.output}
        renamed = {
            source: output
            for output, (source, _) in outputs.items()
            if sources.count(source) == 1 and source in producers
        }
        self.nodes = [
            node
            for node in self.nodes
            if not (
                node.op_type == 'Identity'
                and node.input[0] in renamed
                and renamed[node.input[0]] == node.output[0]
            )
        ]
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, item in enumerate(names):
                    names[i] = renamed.get(item, item)
        self.quantized = {
            renamed.get(name, name): item for name, item in self.quantized.items()
        }
        self.renamed = renamed

"""Focus and the convolution behind it as one convolution, with the same integers.

YOLO's stems put every second row and column of an image beside each other as channels
(four strided slices and a concatenation) and convolve that. One convolution of twice
the kernel, stride and padding adds up the same products of the image itself. Engines
have no kernel for such slices: TIDL runs them on the Arm core, OpenVINO by its
reference code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Between slices, concatenation and convolution: they leave a grid's values as they are.
_GRIDS = ('DequantizeLinear', 'QuantizeLinear', 'Clip')


class _Slice(NamedTuple):
    """A strided part of a tensor: its source, and where its rows and columns begin."""

    source: str
    top: int
    left: int
    step: int


def convolve_at_once(model: onnx.ModelProto) -> None:
    """Replaces slices, concatenation and convolution by one convolution, in place.

    Where anything else reads a slice or the concatenation, or a grid between them is
    not that of the tensor they are of, all stays as it is.

    Args:
        model (onnx.ModelProto): With Q/DQ pairs, or with ranges as clips.
    """
    graph = _Graph(model)
    for conv in [node for node in model.graph.node if node.op_type == 'Conv']:
        slices = graph.slices_of(conv)
        if slices is None:
            continue
        weight = graph.weight_of(conv)
        if weight is None:
            continue
        _spread(weight, slices)
        conv.input[0] = slices[0].source
        changed = {weight.name, conv.input[1]}
        for attribute in conv.attribute:
            if attribute.name in ('kernel_shape', 'strides', 'pads'):
                attribute.ints[:] = [slices[0].step * x for x in attribute.ints]
        graph.remove_unread(changed)


class _Graph:
    """A file, with who makes and reads what in it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.stored = {item.name: item for item in self.graph.initializer}
        self.makers = {name: n for n in self.graph.node for name in n.output}
        self.outputs = {item.name for item in self.graph.output}

    def slices_of(self, conv: onnx.NodeProto) -> list[_Slice] | None:
        """What a convolution reads, if that is all parts of one tensor as channels."""
        given = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
        joined = self._behind_pairs(conv.input[0])
        is_plain = given.get('group', 1) == 1 and set(given.get('dilations', [1])) == {
            1
        }
        padded = given.get('auto_pad', b'NOTSET') in (b'NOTSET', 'NOTSET')
        if joined is None or joined.op_type != 'Concat' or not (is_plain and padded):
            return None
        if helper.get_attribute_value(joined.attribute[0]) != 1:
            return None
        slices = [self._slice(name) for name in joined.input]
        first = slices[0]
        if first is None or self._grid(conv.input[0]) != self._grid(first.source):
            return None
        wanted = {
            _Slice(first.source, top, left, first.step)
            for top in range(first.step)
            for left in range(first.step)
        }
        found = [item for item in slices if item is not None]
        is_all = len(slices) == len(wanted) and wanted.issuperset(found)
        return found if is_all and len(set(found)) == len(wanted) else None

    def weight_of(self, conv: onnx.NodeProto) -> onnx.TensorProto | None:
        """The stored weight of a convolution, if no other reads it."""
        name = conv.input[1]
        maker = self.makers.get(name)
        if maker is not None:
            if maker.op_type != 'DequantizeLinear' or self._count(name) > 1:
                return None
            name = maker.input[0]
        weight = self.stored.get(name)
        is_packed = weight is not None and weight.data_type in _PACKED
        if weight is None or is_packed or self._count(name) > 1:
            return None
        return weight

    def remove_unread(self, changed: set[str]) -> None:
        """Leaves out what nobody reads, and the shapes of what was changed."""
        nodes = list(self.graph.node)
        read = {name for node in nodes for name in node.input} | self.outputs
        while unread := [n for n in nodes if not read.intersection(n.output)]:
            nodes = [node for node in nodes if node not in unread]
            read = {name for node in nodes for name in node.input} | self.outputs
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        for item in [x for x in self.graph.initializer if x.name not in read]:
            self.graph.initializer.remove(item)
        for item in list(self.graph.value_info):
            if item.name in changed or item.name not in read:
                self.graph.value_info.remove(item)

    def _count(self, name: str) -> int:
        return sum(list(node.input).count(name) for node in self.graph.node)

    def _slice(self, name: str) -> _Slice | None:
        node = self._behind_pairs(name)
        if node is None or node.op_type != 'Slice' or len(node.input) != 5:
            return None
        if any(item not in self.stored for item in node.input[1:]):
            return None
        values = [numpy_helper.to_array(self.stored[x]) for x in node.input[1:]]
        starts, ends, axes, steps = (array.tolist() for array in values)
        is_whole = all(end >= np.iinfo(np.int32).max for end in ends)
        if axes != [2, 3] or not is_whole or steps[0] != steps[1] or steps[0] < 2:
            return None
        if self._grid(name) != self._grid(node.input[0]):
            return None
        return _Slice(node.input[0], starts[0], starts[1], steps[0])

    def _behind_pairs(self, name: str) -> onnx.NodeProto | None:
        """What makes a value, but for pairs, or a clip, that read it alone."""
        node = self.makers.get(name)
        while node is not None and node.op_type in _GRIDS:
            if self._count(name) > 1 or name in self.outputs:
                return None
            name = node.input[0]
            node = self.makers.get(name)
        return node

    def _grid(self, name: str) -> tuple[str, ...]:
        """Names of what the last pair, or clip, in front of a value puts it on."""
        node = self.makers.get(name)
        if node is None or node.op_type not in _GRIDS:
            return ()
        return tuple(node.input[1:])


_PACKED = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


def _spread(weight: onnx.TensorProto, slices: list[_Slice]) -> None:
    """A weight of parts as channels becomes that of the whole: (O, C, b·k, b·k)."""
    given = numpy_helper.to_array(weight)
    step = slices[0].step
    count, channels, height, width = given.shape
    channels //= len(slices)
    whole = np.zeros((count, channels, step * height, step * width), given.dtype)
    for part, item in zip(np.split(given, len(slices), 1), slices):
        whole[:, :, item.top :: step, item.left :: step] = part
    weight.CopyFrom(numpy_helper.from_array(whole, weight.name))

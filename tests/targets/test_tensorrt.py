"""What TensorRT asks of a file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402


def test_tensorrt_has_no_zero_points(toy_net, images):
    calibrated(toy_net, images, target='tensorrt')
    exported = export_onnx(toy_net, images, 'tensorrt')
    zeros = [
        onnx.numpy_helper.to_array(item)
        for item in exported.model.graph.initializer
        if item.name.startswith('zero_point')
    ]
    assert zeros
    assert all(item.dtype == np.int8 and not item.any() for item in zeros)


def test_biases_are_numbers_and_transposed_convolutions_have_one_scale():
    net = Forward(
        lambda net, x: net.last(F.relu(net.up(F.relu(net.first(x))))),
        first=nn.Conv2d(3, 8, 3, padding=1),
        up=nn.ConvTranspose2d(8, 4, 4, 2, 1),
        last=nn.Conv2d(4, 4, 1),
    )
    images = torch.randn(1, 3, 16, 16)
    calibrated(net, images, target='tensorrt')
    graph = export_onnx(net, images, 'tensorrt').model.graph
    stored = {item.name: item for item in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    read = [n.input[0] for n in graph.node if n.op_type == 'DequantizeLinear']
    types = {stored[name].data_type for name in read if name in stored}
    assert types == {onnx.TensorProto.INT8}
    for node in graph.node:
        if node.op_type in ('Conv', 'ConvTranspose'):
            assert stored[node.input[2]].data_type == onnx.TensorProto.FLOAT
            scale = stored[makers[node.input[1]].input[1]]
            assert bool(scale.dims) == (node.op_type == 'Conv')

"""Strides of 1 x 1 convolutions, in a file for OpenVINO."""

import pytest
import torch
from torch import nn
from toy_models import Forward, calibrated

pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402


def strided(*strides):
    """Two layers of points that read one tensor, and its file."""
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: tuple(layer(net.first(x)) for layer in (net.one, net.two)),
        first=nn.Conv2d(3, 8, 3),
        one=nn.Conv2d(8, 4, 1, stride=strides[0]),
        two=nn.Conv2d(8, 4, 1, stride=strides[1]),
    ).eval()
    x = torch.randn(2, 3, 17, 19)
    calibrated(net, x, target='openvino')
    return net, x, export_onnx(net, x, 'openvino')


def kinds(exported):
    return [node.op_type for node in exported.model.graph.node]


def test_one_pooling_is_in_front_of_all_that_read_a_tensor():
    net, x, exported = strided(2, 2)
    assert kinds(exported).count('MaxPool') == 1
    backend = 'onnxruntime'
    found = Session(exported.model, backend)(x)
    for (name, item), expected in zip(found.items(), net(x)):
        assert item.shape == expected.shape
        apart = (item - expected).abs() / exported.scales[name]
        assert apart.max() < 1.01


@pytest.mark.parametrize('strides', [(1, 2), (2, 3), (1, 1)])
def test_what_openvino_leaves_alone_stays(strides):
    assert 'MaxPool' not in kinds(strided(*strides)[2])


def test_layers_run_in_integers():
    openvino = pytest.importorskip('openvino')
    net, x, exported = strided(2, 2)
    assert verify(exported, net, [x], 'openvino').share == 1
    core = openvino.Core()
    compiled = core.compile_model(
        *(core.read_model(exported.model.SerializeToString()), 'CPU'),
        {'INFERENCE_PRECISION_HINT': 'f32'},
    )
    layers = [
        info['primitiveType'].astype(str)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if (info := node.get_rt_info())['layerType'].astype(str) == 'Convolution'
    ]
    assert len(layers) == 3
    assert all(layer.endswith('_I8') for layer in layers), layers

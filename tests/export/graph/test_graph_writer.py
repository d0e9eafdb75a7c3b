"""What a file stores, and the names in it."""

import pytest
import torch
import torch.nn.functional as F
from exporting import export, results
from torch import nn
from toy_models import Forward, ToyDetector, calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402


def test_weights_are_stored_once_as_integers():
    net = ToyDetector().eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x)
    stored = {item.name: item for item in exported.model.graph.initializer}
    weights = [name for name in stored if name.endswith('.weight:int')]
    # Two levels share the head.
    assert sorted(weights) == [
        'backbone.conv.weight:int',
        'head.cls.weight:int',
        'head.tower.weight:int',
    ]
    for name in weights:
        assert stored[name].data_type == onnx.TensorProto.INT8
    biases = [name for name in stored if name.startswith('head.cls.bias:int')]
    for name in biases:
        assert stored[name].data_type == onnx.TensorProto.INT32
    floats = [
        item.name
        for item in stored.values()
        if item.data_type == onnx.TensorProto.FLOAT and 'scale' not in item.name
    ]
    assert floats == []


def test_names_are_those_of_the_modules_and_outputs_of_the_head():
    net = ToyDetector().eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x)
    nodes = [node.name for node in exported.model.graph.node]
    assert 'head.tower#1/conv2d' in nodes
    assert [item.name for item in exported.model.graph.output] == ['head.0', 'head.1']
    assert list(exported.scales) == ['head.0', 'head.1']


def test_metadata_says_how_to_run_the_file(toy_net, images):
    calibrated(toy_net, images, target='onnxruntime')
    exported = export_onnx(toy_net, images, metadata={'classes': ['a', 'b']})
    metadata = {item.key: item.value for item in exported.model.metadata_props}
    assert metadata['preset'] == metadata['target'] == 'onnxruntime'
    assert metadata['input_layout'] == 'NCHW'
    assert metadata['classes'] == '["a", "b"]'


@pytest.mark.parametrize('bits', [8, 16])
def test_operators_that_newer_opsets_call_otherwise(bits):
    net = Forward(
        lambda net, x: net.two(F.glu(net.one(x), 1)).amax((2, 3)),
        one=nn.Conv2d(3, 8, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(1, 3, 10, 10)
    exported = export(net, x, bits=bits)
    expected, found = results(net, exported, torch.randn(1, 3, 10, 10))
    assert exported.model.opset_import[0].version == (21 if bits == 16 else 17)
    (scale,) = exported.scales.values()
    assert (expected - found).abs().max() <= 1.01 * scale

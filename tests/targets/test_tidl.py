"""What TIDL reads: floats on their grids, and clips."""

import collections
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import ToyNet, calibrated, randomize_norms

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.graph.rounded_twin import (  # noqa: E402
    METADATA_KEY as GRIDS,
)
from mmquant_jacinto.export.verify import verify  # noqa: E402


def test_tda4vm_gets_clips_and_weights_on_their_grid(toy_net, images):
    calibrated(toy_net, images, target='jacinto')
    exported = export_onnx(toy_net, images, 'tidl')
    operators = collections.Counter(node.op_type for node in exported.model.graph.node)
    assert operators['Clip'] >= 6
    assert operators['QuantizeLinear'] == operators['DequantizeLinear'] == 0
    for item in exported.model.graph.initializer:
        if item.name.endswith('.weight'):
            weight = onnx.numpy_helper.to_array(item)
            step = 2.0 ** np.ceil(np.log2(np.abs(weight).max())) / 128
            assert not (weight / step % 1).any()


class Functions(nn.Module):
    """What is computed between two grids, once for each of their points."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.third = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        x = F.silu(self.first(x))
        x = x + F.silu(self.second(x)).tanh()
        return self.third(F.hardswish(F.avg_pool2d(x, 3, 1, 1))).sigmoid()


@pytest.mark.parametrize('net', [ToyNet, Functions])
def test_tda4vms_float_model_is_proven_by_the_rounding_it_stands_for(net):
    torch.manual_seed(0)
    model, images = randomize_norms(net()).eval(), torch.randn(4, 3, 64, 64)
    calibrated(model, images, target='jacinto')
    exported = export_onnx(model, images, 'tidl')
    report = verify(exported, model, [images, torch.randn(4, 3, 64, 64)])
    assert report.rounds and report.is_float
    assert report.share == 1 and report.same_bits and report.holds(1.0)
    assert all(item.on_grid for item in report.outputs)
    # The file itself rounds nothing: its importer does.
    proto = onnx.ModelProto()
    proto.CopyFrom(exported.model)
    kept = [item for item in proto.metadata_props if item.key != GRIDS]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    report = verify(replace(exported, model=proto), model, [images])
    assert report.share < 1


def test_another_range_than_the_checkpoints_does_not_pass(toy_net, images):
    calibrated(toy_net, images, target='jacinto')
    exported = export_onnx(toy_net, images, 'tidl')
    (clip,) = [n for n in exported.model.graph.node if n.input[0] == 'conv/conv2d']
    for item in exported.model.graph.initializer:
        if item.name == clip.input[2]:
            wrong = onnx.numpy_helper.to_array(item) / 8
            item.CopyFrom(onnx.numpy_helper.from_array(wrong, item.name))
    report = verify(exported, toy_net, [images])
    assert report.share < 1 and not report.holds()


def test_16_bits_differ_less_from_the_checkpoint_than_that_from_float(toy_net, images):
    calibrated(toy_net, images, target='jacinto', bits=16)
    report = verify(export_onnx(toy_net, images, 'tidl'), toy_net, [images])
    assert not report.rounds and report.is_wide
    assert report.holds() and report.signal_to_noise > 60


def test_tda4vm_is_told_which_tensors_have_16_bits_and_which_layers_are_float(
    toy_net, images
):
    overrides = {'conv': dict(weight=16), 'fc': dict(activation=16), 'expand': False}
    calibrated(toy_net, images, target='jacinto', overrides=overrides)
    exported = export_onnx(toy_net, images, 'tidl')
    nodes = {node.name: node for node in exported.model.graph.node}
    made = {name: node for node in nodes.values() for name in node.output}
    options = exported.options
    wide = options['advanced_options:output_feature_16bit_names_list'].split(', ')
    assert [made[name].op_type for name in wide] == ['Clip']
    assert made[wide[0]].name.startswith('fc/')
    (weights,) = options['advanced_options:params_16bit_names_list'].split(', ')
    assert made[weights].op_type == 'Clip' and weights.startswith('conv/')
    assert nodes[options['deny_list:layer_name']].op_type == 'Conv'
    calibrated(toy_net, images, target='jacinto')
    assert export_onnx(toy_net, images, 'tidl').options == {}
    calibrated(toy_net, images, target='onnxruntime', overrides={'fc': 16})
    assert export_onnx(toy_net, images, 'onnxruntime').options == {}

"""What TIDL reads: floats on their grids, and clips."""

import collections

import numpy as np
import pytest
from toy_models import calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
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
    report = verify(exported, toy_net, [images])
    assert report.holds()
    assert report.share < 1


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

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

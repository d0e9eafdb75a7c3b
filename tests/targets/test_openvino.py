"""What OpenVINO can have in a file."""

import pytest
from toy_models import calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402


def test_4_bits_are_packed_where_the_target_has_them(toy_net, images):
    calibrated(toy_net, images, target='openvino', bits=dict(weight=4))
    exported = export_onnx(toy_net, images, 'openvino')
    stored = [
        item
        for item in exported.model.graph.initializer
        if item.name.endswith('weight:int')
    ]
    assert {item.data_type for item in stored} == {onnx.TensorProto.INT4}

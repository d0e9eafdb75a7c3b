"""What TensorRT asks of a file."""

import numpy as np
import pytest
from toy_models import calibrated

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
    assert all(item.dtype in (np.int8, np.int32) and not item.any() for item in zeros)

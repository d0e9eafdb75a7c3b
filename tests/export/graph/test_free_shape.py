"""Files for images of any size, and what hinders them."""

import pytest
import torch
from toy_models import ToyDetector, calibrated

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.example import RegionOutputs, named_tensors  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402


def test_free_batch_and_size():
    net = ToyDetector().eval()
    x = torch.randn(1, 3, 16, 16)
    calibrated(net, x, target='onnxruntime')
    exported = export_onnx(net, x, dynamic=True)
    session = Session(exported.model)
    assert session.input_shape == (0, 3, 0, 0)
    for shape in ((2, 3, 16, 16), (1, 3, 32, 24)):
        x = torch.randn(shape)
        regions = RegionOutputs(net, exported.layout)
        with regions.collecting() as outputs:
            net(x)
        expected = named_tensors(exported.layout, outputs)
        for name, found in session(x).items():
            assert torch.equal(found, expected[name])


def test_what_depends_on_the_size_is_named(toy_net, images):
    calibrated(toy_net, images, target='onnxruntime')
    with pytest.raises(QuantizeError, match='flatten.*--shape'):
        export_onnx(toy_net, images, dynamic=True)

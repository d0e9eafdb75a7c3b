"""Where a file parts from its model is counted and named."""

import pytest
import torch
from exporting import export

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.verify import first_difference, verify  # noqa: E402


def test_verification_counts_and_names_what_parts(toy_net, images):
    exported = export(toy_net, images)
    report = verify(exported, toy_net, [images, torch.randn(2, 3, 16, 16)])
    assert report.share == 1
    assert report.images == 4
    assert report.first is None
    assert report.holds(1.0)
    # Another weight than the file's.
    with torch.no_grad():
        toy_net.conv.weight.mul_(-1)
    toy_net.quantization.set_phase('test')
    report = verify(exported, toy_net, [images])
    assert report.share < 0.9
    assert not report.holds()


@pytest.mark.parametrize('at_a_time', [2**26, 1000])
def test_bisection_names_the_first_tensor(toy_net, images, monkeypatch, at_a_time):
    from mmquant_jacinto.export import verify
    from mmquant_jacinto.targets import onnxruntime

    monkeypatch.setattr(verify, 'MAX_COMPARED', at_a_time)
    exported = export(toy_net, images)
    assert first_difference(exported, toy_net, images) is None
    monkeypatch.setattr(
        onnxruntime.OnnxRuntimeArithmetic,
        'add',
        lambda self, x, y, first, second, grid: (x + y + 4) * 0.9,
    )
    assert first_difference(exported, toy_net, images) == '/add:out'

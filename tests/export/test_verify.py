"""Where a file parts from its model is counted and named."""

import pytest
import torch
from exporting import export
from torch import nn
from toy_models import Forward

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.verify import (  # noqa: E402
    OutputReport,
    first_difference,
    verify,
)


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


def test_number_of_the_example_in_a_file_is_named():
    # What a program reads of an image is a number of its own.
    net = Forward(
        lambda net, x: net.layer(x) * (float(x[0, 0, 0, 0].round()) + 2),
        layer=nn.Conv2d(3, 3, 1),
    ).eval()
    image = torch.randn(1, 3, 8, 8)
    image[0, 0, 0, 0] = 1
    other = image.clone()
    other[0, 0, 0, 0] = -1
    exported = export(net, image)
    assert verify(exported, net, [image]).share == 1
    report = verify(exported, net, [image, other])
    assert report.first is None and report.holds_example
    assert 'of the image that it was made of' in report.where


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
        lambda self, x, y, *grids: (x + y + 4) * 0.9,
    )
    assert first_difference(exported, toy_net, images) == '/add:out'


def test_last_bits_of_a_function_at_the_end_are_no_difference():
    report = OutputReport('output')
    expected = torch.tensor([1.0, 0.5, 0.25])
    report.add(expected, expected + 2.0**-22, None)
    assert (report.equal, report.same_bits) == (3, False)
    report.add(expected, expected + 2.0**-20, None)
    assert report.equal == 3
    # On a grid there is nothing between equal and another integer.
    report.add(expected, expected + 2.0**-22, 0.25)
    assert report.equal == 3

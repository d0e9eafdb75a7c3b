"""A net, its file, and what both return."""

import pytest
import torch
from toy_models import calibrated

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402


def export(net, x, to='onnxruntime', **quantize):
    """The net calibrated on ``x``, and its file."""
    calibrated(net, x, **{'target': 'onnxruntime', **quantize})
    return export_onnx(net, x, to)


def results(net, exported, x):
    """What the net in PyTorch and the file in ONNX Runtime return."""
    with torch.no_grad():
        expected = net(x)
    found = Session(exported.model)(x)
    assert len(found) == 1
    return expected, next(iter(found.values()))

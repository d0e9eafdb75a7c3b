"""Exported files against the integer model, in ONNX Runtime."""

import collections

import pytest
import torch
from exporting import export, results
from torch import nn
from toy_models import Forward, ToyNet, calibrated, randomize_norms

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import kernels  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402

INTEGER_KERNELS = {
    'Conv': 'QLinearConv',
    'Gemm': 'QGemm',
    'MatMul': 'QLinearMatMul',
}


@pytest.mark.parametrize('bits', [8, 7, 4, dict(weight=4, activation=8)])
@pytest.mark.parametrize('preset', ['onnxruntime', 'tensorrt', 'jacinto', 'tidl'])
def test_file_computes_what_the_integer_model_does(preset, bits, toy_net, images):
    exported = export(toy_net, images, target=preset, bits=bits)
    expected, found = results(toy_net, exported, torch.randn(2, 3, 16, 16))
    assert torch.equal(expected, found)
    assert expected.unique().numel() > 3


@pytest.mark.parametrize(
    'preset, to, per_channel',
    [
        ('jacinto', 'onnxruntime', True),
        ('onnxruntime', 'onnxruntime', False),
        ('tidl', 'tidl', False),
    ],
)
def test_other_scales_than_the_presets(preset, to, per_channel, toy_net, images):
    exported = export(toy_net, images, to, target=preset, per_channel=per_channel)
    expected, found = results(toy_net, exported, torch.randn(2, 3, 16, 16))
    assert torch.equal(expected, found)
    assert expected.unique().numel() > 3


def test_16_bits(toy_net, images):
    exported = export(toy_net, images, bits=16)
    assert exported.model.opset_import[0].version == 21
    expected, found = results(toy_net, exported, torch.randn(2, 3, 16, 16))
    (scale,) = exported.scales.values()
    # No integer kernels: the float ones add in an order of their own.
    assert (expected - found).abs().max() <= 1.01 * scale
    report = verify(exported, toy_net, [images])
    assert not report.rounds
    assert report.signal_to_noise > report.least_signal_to_noise > 60
    assert report.holds()
    # Further from the model than the model from the float one.
    report.outputs[0].noise = 1.1 * report.outputs[0].quantization
    assert not report.holds()


def test_every_layer_is_an_integer_kernel(toy_net, images):
    exported = export(toy_net, images)
    written = collections.Counter(node.op_type for node in exported.model.graph.node)
    run = kernels(exported.model)
    for operator, kernel in INTEGER_KERNELS.items():
        assert run[kernel] == written[operator]
        assert run[operator] == 0
    assert run['QLinearAdd'] == run['QLinearConcat'] == 1
    assert run['QuantizeLinear'] == run['DequantizeLinear'] == 1


def test_float_model_is_refused(toy_net, images):
    with pytest.raises(QuantizeError, match='float model'):
        export_onnx(toy_net, images)


def test_model_without_ranges_is_refused(toy_net, images):
    from toy_models import make_plan

    from mmquant_jacinto import quantize_model

    quantize_model(toy_net, make_plan(toy_net, images))
    with pytest.raises(QuantizeError, match='no quantization ranges'):
        export_onnx(toy_net, images)


@pytest.mark.parametrize(
    'target, quantize, message',
    [
        ('onnxrt', {}, "did you mean 'onnxruntime'"),
        ('tensorrt', {}, "quantize.target='onnxruntime'"),
        ('tensorrt', dict(target='tensorrt', bits=16), 'more than 8 bits in /input'),
        ('tidl', dict(bits=16), '16 bits, and --target tidl takes up to 8'),
        ('tidl', dict(target='jacinto', per_channel=True), 'per_channel=True'),
    ],
)
def test_unfit_target_is_refused(target, quantize, message, toy_net, images):
    with pytest.raises(QuantizeError, match=message):
        export(toy_net, images, target, **quantize)


def test_missing_operator_is_named_with_its_line():
    net = Forward(lambda net, x: torch.cumsum(net.conv(x), 1), conv=nn.Conv2d(3, 4, 1))
    x = torch.randn(1, 3, 8, 8)
    calibrated(net, x, target='onnxruntime')
    with pytest.raises(QuantizeError, match=r"'cumsum'.*test_exporter\.py:\d+"):
        export_onnx(net, x)


def test_normalization_statistics_survive(images):
    net = randomize_norms(ToyNet()).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    export(net, images)
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value)

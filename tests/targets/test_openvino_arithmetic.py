"""Tests of openvino against OpenVINO itself, by scales that make ties frequent."""

import pytest
import torch
import torch.nn.functional as F
from smooth_functions import uneven
from torch import nn
from toy_models import Forward, calibrated

pytest.importorskip('onnx')
openvino = pytest.importorskip('openvino')
pytest.importorskip('onnx_ir')

from mmquant_jacinto import QuantCalibrateModule  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.verify import verify  # noqa: E402
from mmquant_jacinto.targets.grid import Grid  # noqa: E402
from mmquant_jacinto.targets.openvino import OpenVinoArithmetic  # noqa: E402


def conv(inputs=8, **options):
    return nn.Conv2d(inputs, 16, 1, **options)


NETS = {
    'layer': lambda net, x: net.a(x),
    'relu': lambda net, x: F.relu(net.a(x)),
    'relu6': lambda net, x: F.relu6(net.a(x)),
    'silu': lambda net, x: F.silu(net.a(x)),
    'x * sigmoid(x)': lambda net, x: (y := net.a(x)) * y.sigmoid(),
    'hardswish': lambda net, x: F.hardswish(net.a(x)),
    'without bias': lambda net, x: net.bare(x),
    'sum of layers': lambda net, x: net.a(x) + net.b(x),
    'sum, then relu': lambda net, x: F.relu(net.a(x) + net.b(x)),
    'residual': lambda net, x: (y := F.relu(net.a(x))) + net.c(y),
    **(
        SUMS := {
            'block': lambda net, x: F.relu(
                net.d(F.relu(net.c(y := F.relu(net.a(x))))) + y
            ),
            'block with zero points': lambda net, x: (
                (y := net.a(x)) + net.d(F.relu(net.c(y)))
            ),
            'block without bias': lambda net, x: F.relu(
                net.unbiased(F.relu(net.c(y := F.relu(net.a(x))))) + y
            ),
            'pyramid': lambda net, x: (
                net.b(x) + F.interpolate(F.max_pool2d(net.a(x), 2), scale_factor=2)
            ),
        }
    ),
}


@pytest.fixture
def x():
    torch.manual_seed(1)
    # Few values, so that sums of products are few, and half of a step among them.
    return torch.randint(-8, 8, (2, 8, 64, 64)) / 8.0


def kinds_of_sums(model):
    """What OpenVINO computes additions as."""
    core = openvino.Core()
    settings = {'INFERENCE_PRECISION_HINT': 'f32'}
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), 'CPU', settings
    )
    found = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return {
        str(info['layerType'].astype(str))
        for info in found
        if '/add' in str(info['originalLayersNames'].astype(str))
    }


@pytest.mark.parametrize('name', NETS)
def test_all_integers_are_equal(name, x):
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.last(NETS[name](net, x)),
        a=conv(),
        b=conv(),
        c=conv(16),
        d=conv(16),
        bare=conv(bias=False),
        unbiased=conv(16, bias=False),
        last=nn.Conv2d(16, 8, 1),
    )
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight * 16).round() / 16)
    calibrated(net.eval(), x, target='openvino')
    exported = export_onnx(net, x, 'openvino')
    report = verify(exported, net, [x], 'openvino')
    assert report.share == 1
    # Compares integers, and not with what ONNX Runtime rounds by the pair.
    assert verify(exported, net, [x], 'onnxruntime').share > 0.999
    if name in SUMS:
        assert kinds_of_sums(exported.model) == {'Convolution'}


@pytest.mark.parametrize('function', [F.silu, F.hardswish, F.relu6])
def test_all_integers_of_scaled_channels_are_equal(function):
    torch.manual_seed(1)
    x = torch.randn(4, 3, 48, 48)
    net = uneven(function)
    calib = QuantCalibrateModule(net, x, target='openvino').train()
    calib(x)
    calib.eval()
    assert (calib.quantization.channel_factor != 1).any()
    exported = export_onnx(net, x, 'openvino')
    assert verify(exported, net, [x], 'openvino').share == 1


def test_ties_go_to_the_even_stored_integer():
    grid = Grid(0.5, -3, 252, 256, 'half_even')
    x = torch.tensor([0.25, 0.75, 1.25, -0.25])
    steps = OpenVinoArithmetic().quantize(x, grid)
    # Stored they are 3.5, 4.5, 5.5 and 2.5.
    assert steps.tolist() == [1, 1, 3, -1]


def test_functions_are_those_of_onednn_up_to_last_bits():
    x = torch.linspace(-30, 30, 10001)
    engine = OpenVinoArithmetic()
    for name, function in dict(
        sigmoid=torch.sigmoid, silu=F.silu, hardswish=F.hardswish
    ).items():
        found = engine.function(name)(x)
        assert torch.allclose(found, function(x), rtol=1e-5, atol=1e-6), name

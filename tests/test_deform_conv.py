import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated, make_plan

ops = pytest.importorskip('mmcv.ops')


def make(kind, **options):
    net = getattr(ops, kind)(4, 6, 3, padding=1, **options)
    nn.init.normal_(net.weight, std=0.3)
    # Fractions of pixels: otherwise it is a convolution.
    nn.init.normal_(net.conv_offset.weight, std=0.1)
    return net


KINDS = ['DeformConv2dPack', 'ModulatedDeformConv2dPack']


@pytest.fixture
def image():
    return torch.randn(2, 4, 8, 8)


@pytest.mark.parametrize('kind', KINDS)
def test_deformable_convolution_is_a_layer_with_its_normalization(kind, image):
    net = Forward(
        lambda net, x: F.relu(net.norm(net.conv(x))),
        conv=make(kind),
        norm=nn.BatchNorm2d(6),
    )
    plan = make_plan(net, image)
    assert set(plan.weights) == {'conv', 'conv.conv_offset'}
    assert plan.weights['conv'].norm == 'norm'
    assert plan.in_float == {}
    step = plan.steps['conv/deform_conv2d']
    assert step.inputs == ('/input',)
    assert step.clip == (0.0, None)


@pytest.mark.parametrize('phase', ['train', 'test'])
@pytest.mark.parametrize('kind', KINDS)
def test_quantized_deformable_convolution_is_close(kind, image, phase):
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.running_mean)
    net = Forward(lambda net, x: net.norm(net.conv(x)), conv=make(kind), norm=norm)
    net.eval()
    expected = net(image)
    calibrated(net, image, phase, bits=16, observer='minmax')
    out = net(image)
    assert not torch.equal(out, expected)
    noise = (out - expected).square().mean()
    assert 10 * torch.log10(expected.square().mean() / noise) > 55


@pytest.mark.parametrize('kind', KINDS)
def test_all_parameters_of_a_deformable_convolution_train(kind, image):
    net = Forward(lambda net, x: net.conv(x), conv=make(kind))
    calibrated(net, image, 'train')
    net(image).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_without_a_quantized_model_nothing_changes(image):
    conv = make('ModulatedDeformConv2dPack')
    before = conv(image)
    make_plan(Forward(lambda net, x: net.conv(x), conv=conv), image)
    assert torch.equal(conv(image), before)
    # Names that were imported before are bound anew too.
    from mmcv.ops import saconv

    assert saconv.deform_conv2d is ops.deform_conv2d

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated, make_plan

from mmquant_jacinto.execute.integer.sampling import Resize, Taps, sample
from mmquant_jacinto.targets.grid import Grid

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


GEOMETRIES = [
    dict(stride=1, padding=1, dilation=1),
    dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
]


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_samples_are_what_mmcv_multiplies(geometry, modulated):
    x = torch.randint(-20, 21, (2, 4, 9, 8)).float()
    weight = torch.randn(6, 2, 3, 2)
    taps = Taps.of((3, 2), (*geometry.values(), 2, 2))
    height, width = taps.size(9, 8)
    offset = 3 * torch.randn(2, 2 * 2 * 6, height, width)
    mask = torch.rand(2, 2 * 6, height, width) if modulated else None
    grid = Grid(0.1, -20, 20, 64, 'half_even')
    found = sample(x, offset, mask, taps, grid)
    assert torch.equal(found, found.round())
    pad = torch.nn.modules.utils._pair
    shape = [pad(value) for value in geometry.values()]
    if modulated:
        expected = ops.modulated_deform_conv2d(
            x, offset, mask, weight, None, *shape, 2, 2
        )
    else:
        expected = ops.deform_conv2d(x, offset, weight, *shape, 2, 2)
    total = F.conv2d(found, weight.flatten(1)[..., None, None], groups=2)
    # Half a step for each of the samples.
    bound = 0.5 * weight.abs().sum((1, 2, 3)).view(-1, 1, 1)
    assert total.shape == expected.shape
    assert ((total - expected).abs() <= bound + 1e-3).all()
    assert (total - expected).std() < 0.5 * bound.mean()


def test_arguments_that_are_left_out(image):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
            self.offsets = nn.Conv2d(4, 18, 3, padding=1)

        def forward(self, x):
            return ops.deform_conv2d(x, self.offsets(x), self.weight, 1, 1)

    net = Bare()
    expected = net(image)
    calibrated(net, image, 'test', target='onnxruntime', bits=16, observer='minmax')
    assert (net(image) - expected).abs().max() < 0.05


@pytest.mark.parametrize('batch', [0, 2])
def test_places_that_are_no_numbers_and_empty_batches(batch):
    x = torch.randint(-20, 21, (batch, 4, 8, 8)).float()
    taps = Taps.of((3, 3), (1, 1, 1, 1, 2))
    offset = torch.randn(batch, 36, 8, 8)
    offset[:, :, 0, 0] = torch.nan
    found = sample(x, offset, None, taps, Grid(1.0, -20, 20, 64, 'half_even'))
    assert found.shape == (batch, 36, 8, 8)
    assert found[..., 1:, 1:].isfinite().all()


def test_the_first_of_more_offsets_count():
    x = torch.randint(-20, 21, (2, 4, 8, 8)).float()
    taps = Taps.of((3, 3), (2, 1, 1, 1, 1))
    offset, mask = torch.randn(2, 18, 8, 8), torch.rand(2, 9, 8, 8)
    found = sample(x, offset, mask, taps, Grid(1.0, -20, 20, 64, 'half_even'))
    weight = torch.eye(36).view(36, 4, 3, 3)
    expected = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 2, 1)
    assert (found - expected).abs().max() <= 0.5 + 1e-4


def test_positions_are_made_once_and_outlive_inference_mode():
    taps = Taps.of((3, 3), (2, 1, 1, 1, 1))
    resize = Resize(scale_factor=3, mode='bilinear')
    device = torch.device('cpu')
    with torch.inference_mode():
        first = taps.positions(13, 11, device)
        resize.positions((5, 7), (15, 21), device)
    assert all(a is b for a, b in zip(first, taps.positions(13, 11, device)))
    offset = torch.zeros(1, requires_grad=True)
    for base in (*first, *resize.positions((5, 7), (15, 21), device)):
        (base * offset).sum().backward()  # keeps the positions
    assert offset.grad.isfinite()


def test_without_a_quantized_model_nothing_changes(image):
    conv = make('ModulatedDeformConv2dPack')
    before = conv(image)
    make_plan(Forward(lambda net, x: net.conv(x), conv=conv), image)
    assert torch.equal(conv(image), before)
    # Names that were imported before are bound anew too.
    from mmcv.ops import saconv

    assert saconv.deform_conv2d is ops.deform_conv2d

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import ROUND, power_of_two
from torch import nn
from toy_models import Forward, calibrated, randomize_norms, seeded

from mmquant_jacinto import PRESETS
from mmquant_jacinto.quantizers.weight_grids import WeightGrids
from mmquant_jacinto.quantizers.weights import (
    constrain_weights,
    fold_layer,
    quantize_bias,
    quantize_weight,
    straight_through,
    to_integers,
)

TARGETS = ['jacinto', 'tidl']
POWER = PRESETS['jacinto'].weight  # per tensor, power of two, half away


def quantized(conv, norm=None, x=None, **quantize):
    """The layer and the grids of a convolution with what follows it."""
    if x is None:
        x = torch.randn(2, conv.in_channels, 6, 6)
    if norm is None:
        net = Forward(lambda net, x: net.conv(x), conv=conv)
    else:
        net = Forward(lambda net, x: net.norm(net.conv(x)), conv=conv, norm=norm)
    quantization = calibrated(net.eval(), x, 'train', **quantize)
    grids = WeightGrids(
        quantization.plan, quantization.layers, quantization.activations
    )
    grids.compute(quantization.bias_correction)
    return quantization.layers['conv'], grids


def convolution(weight, transposed=False):
    """A convolution without bias that has this weight."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    first, second = weight.shape[:2]
    channels = (first, second) if transposed else (second, first)
    conv = kind(*channels, weight.shape[-1], bias=False)
    with torch.no_grad():
        conv.weight.copy_(weight)
    return conv


def sample_weight(size):
    """A weight with ties, and with a channel that is all zero."""
    weight = torch.randn(4, 4, size, size)
    weight[1] = 0
    weight[:, 1] = 0
    weight[0, 0].view(-1)[:4] = torch.tensor([-2.5, -1.5, 0.5, 1.5]) / 64
    return weight


def on_grid(layer, grids):
    """Integers of the folded weight."""
    step = layer.along_channels(grids.step('conv'))
    return to_integers(layer.folded()[0], step, layer.spec.format).detach()


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('transposed', [False, True])
def test_power_of_two_weights_are_the_formula(bits, transposed):
    weight = sample_weight(3)
    layer, grids = quantized(convolution(weight, transposed), bits=bits)
    half = 2 ** (bits - 1)
    w = weight.numpy()
    expected = power_of_two(np.abs(w).max()) / half
    assert set(grids.step('conv').tolist()) == {expected}
    integers = np.clip(ROUND['half_away'](w / expected), -half, half - 1)
    np.testing.assert_array_equal(on_grid(layer, grids).numpy(), integers)


def test_weight_at_an_exact_power_of_two_saturates_like_the_original():
    weight = torch.tensor([1.0, -1.0, 0.5])[:, None, None, None]
    layer, grids = quantized(convolution(weight), per_channel=False)
    assert grids.step('conv').tolist() == [1 / 128] * 3
    assert on_grid(layer, grids).flatten().tolist() == [127, -128, 64]


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('axis', [0, 1])
def test_per_channel_weights_are_the_formula(bits, axis):
    weight = sample_weight(3)
    layer, grids = quantized(
        convolution(weight, axis == 1), target='onnxruntime', bits=bits
    )
    high = 2 ** (bits - 1) - 1
    w = weight.numpy()
    others = tuple(d for d in range(4) if d != axis)
    reach = np.abs(w).max(others, keepdims=True)
    reach = np.maximum(reach, reach.max() / np.float32(256))
    expected = reach / np.float32(high)
    np.testing.assert_array_equal(grids.step('conv').numpy(), expected.ravel())
    integers = np.rint(w / expected)
    np.testing.assert_array_equal(on_grid(layer, grids).numpy(), integers)
    # Symmetric about zero: the most negative integer is not used.
    assert integers.min() >= -high


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('axis', [0, 1])
def test_power_of_two_per_channel_weights_are_the_formula(bits, axis):
    weight = sample_weight(3)
    weight[(slice(None),) * axis + (3,)] *= 1e-4  # finer than any may be
    layer, grids = quantized(
        convolution(weight, axis == 1), bits=bits, per_channel=True
    )
    half, w = 2 ** (bits - 1), weight.numpy()
    others = tuple(d for d in range(4) if d != axis)
    reach = np.abs(w).max(others, keepdims=True)
    expected = power_of_two(np.maximum(reach, reach.max() / 256)) / half
    assert len(set(expected.ravel())) >= 2
    np.testing.assert_array_equal(grids.step('conv').numpy(), expected.ravel())
    integers = np.clip(ROUND['half_away'](w / expected), -half, half - 1)
    np.testing.assert_array_equal(on_grid(layer, grids).numpy(), integers)


@pytest.mark.parametrize('bits', [4, 8])
def test_affine_targets_per_tensor_weights_are_the_formula(bits):
    weight = sample_weight(3)
    layer, grids = quantized(
        convolution(weight), target='onnxruntime', bits=bits, per_channel=False
    )
    w, high = weight.numpy(), 2 ** (bits - 1) - 1
    expected = np.abs(w).max() / np.float32(high)
    assert grids.step('conv').tolist() == [expected] * 4
    np.testing.assert_array_equal(on_grid(layer, grids).numpy(), np.rint(w / expected))


@pytest.mark.parametrize('target', ['tidl', 'jacinto'])
def test_no_channel_is_finer_than_a_256th_of_the_coarsest(target):
    weight = torch.tensor([1.0, 1e-6, 0.25])[:, None, None, None]
    grids = quantized(convolution(weight), target=target, per_channel=True)[1]
    step = grids.step('conv')
    assert (step.max() / step).tolist() == pytest.approx([1, 256, 4])


FOLDED = {
    'conv': (nn.Conv2d(4, 6, 3), F.conv2d, {}),
    'conv without bias': (nn.Conv2d(4, 6, 3, bias=False), F.conv2d, {}),
    'grouped': (nn.Conv2d(4, 6, 3, groups=2), F.conv2d, dict(groups=2)),
    'depthwise': (nn.Conv2d(4, 8, 3, groups=4), F.conv2d, dict(groups=4)),
    'transposed': (nn.ConvTranspose2d(4, 6, 2), F.conv_transpose2d, {}),
    'transposed square': (nn.ConvTranspose2d(4, 4, 2), F.conv_transpose2d, {}),
    'grouped transposed': (
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        F.conv_transpose2d,
        dict(groups=2),
    ),
    'depthwise transposed': (
        nn.ConvTranspose2d(4, 4, 2, groups=4),
        F.conv_transpose2d,
        dict(groups=4),
    ),
    'linear': (nn.Linear(5, 6), F.linear, {}),
}


def layer_of(case, **quantize):
    conv, function, options = FOLDED[case]
    linear = isinstance(conv, nn.Linear)
    channels = conv.out_features if linear else conv.out_channels
    norm = randomize_norms((nn.BatchNorm1d if linear else nn.BatchNorm2d)(channels))
    with torch.no_grad():
        norm.weight[0] *= -1  # a grid is not turned by a negative factor
    x = torch.randn(3, 5) if linear else torch.randn(2, 4, 5, 5)
    layer, grids = quantized(conv, norm, x, **quantize)
    return layer, grids, x, lambda: function(x, *layer.folded(), **options)


@pytest.mark.parametrize('case', FOLDED)
def test_folded_layer_computes_layer_and_normalization(case):
    layer, _, x, folded = layer_of(case)
    weight, bias = layer.weight, layer.bias
    # The modules themselves are quantized by now.
    options = FOLDED[case][2]
    raw = FOLDED[case][1](x, weight, bias, **options)
    norm = layer.norm
    expected = F.batch_norm(
        raw, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
    torch.testing.assert_close(folded(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('case', FOLDED)
def test_grid_is_that_of_the_folded_weight(case, target):
    # It is found without multiplying the weight.
    layer, grids, *_ = layer_of(case, target=target, constrain_bias=False)
    weight = layer.folded()[0].detach()
    if layer.spec.format.per_channel:
        reach = weight.transpose(0, layer.spec.axis).flatten(1).abs().amax(1)
    else:
        reach = weight.abs().max().repeat(layer.spec.channels)
    expected = power_of_two(reach.numpy()) / 128 if target == 'jacinto' else reach / 127
    torch.testing.assert_close(grids.step('conv'), torch.as_tensor(expected))


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('case', FOLDED)
def test_weight_before_a_live_normalization_is_on_the_folded_grid(case, target):
    # The two divide in another order: a draw may have a weight between two steps.
    torch.manual_seed(0)
    layer, grids, *_ = layer_of(case, target=target)
    step = layer.along_channels(grids.live_step('conv'))
    weight = quantize_weight(layer.weight, step, layer.spec.format)
    factor = layer.along_channels(layer.fold_factor())
    steps = weight * factor / layer.along_channels(grids.step('conv'))
    torch.testing.assert_close(steps.detach(), on_grid(layer, grids))


def test_gradient_of_a_weight_passes_straight_through():
    weight = torch.randn(4, 3, requires_grad=True)
    arriving = torch.arange(12.0).view(4, 3)
    step = torch.tensor(1 / 256)
    out = quantize_weight(weight, step, POWER)
    out.backward(arriving.clone())
    assert torch.equal(weight.grad, arriving)  # clipped or not
    given = straight_through(weight, out.detach().clone())
    given.backward(arriving)
    assert torch.equal(given, out) and torch.equal(weight.grad, 2 * arriving)


@pytest.mark.parametrize('is_given', [False, True])
@pytest.mark.parametrize('uses', [1, 2])
@pytest.mark.parametrize('case', FOLDED)
def test_gradient_through_a_folded_layer_is_that_without_rounding(case, uses, is_given):
    layer, grids, *_ = layer_of(case)
    parameters = [p for p in layer.parameters if p is not None and p.requires_grad]

    def gradients(weight, bias):
        # A head that several levels share uses its layers more than once.
        generator = seeded(1)
        total = 0
        for _ in range(uses):
            arriving = torch.randn(weight.shape, generator=generator)
            total = total + (weight * arriving).sum() + (bias * bias.detach()).sum()
        return torch.autograd.grad(total, parameters)

    folding = grids.folding('conv')
    weight, bias = fold_layer(layer, folding)
    if is_given:
        # As where all weights are put on their grids together.
        on_grid = weight.detach().clone()
        weight, bias = fold_layer(layer, folding, on_grid)
        assert torch.equal(weight, on_grid)
    expected = layer.folded()
    assert torch.equal(bias, folding.bias)
    torch.testing.assert_close(bias, expected[1])
    torch.testing.assert_close(
        gradients(weight, bias), gradients(*expected), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('case', FOLDED)
def test_weight_of_a_folded_layer_is_on_the_grid(case):
    layer, grids, *_ = layer_of(case)
    weight = fold_layer(layer, grids.folding('conv'))[0].detach()
    steps = weight / layer.along_channels(grids.step('conv'))
    torch.testing.assert_close(steps, on_grid(layer, grids))


@pytest.mark.parametrize('target', TARGETS)
def test_channel_that_its_normalization_zeroes_is_on_its_own_grid(target):
    # As residual branches start; the weight must not turn into zero or NaN.
    norm = nn.BatchNorm2d(4)
    nn.init.zeros_(norm.weight)
    with torch.no_grad():
        norm.weight[2] = 1
    layer, grids = quantized(nn.Conv2d(3, 4, 3), norm, target=target)
    step = layer.along_channels(grids.live_step('conv'))
    out = quantize_weight(layer.weight, step, layer.spec.format)
    bound = layer.weight.abs().max().item() / 64
    torch.testing.assert_close(out, layer.weight, rtol=0, atol=bound)


@pytest.mark.parametrize('bits', [16, 32])
def test_bias_saturates(bits):
    limit = 2.0 ** (bits - 1)
    bias = torch.tensor([0.26, -0.24, 1e12, -1e12], dtype=torch.float64)
    assert quantize_bias(bias, 0.5, bits).tolist() == [1, 0, limit - 1, -limit]


def with_bias(bias, **quantize):
    """Grids of a convolution with that bias; its input has the scale 2**-7."""
    conv = nn.Conv2d(3, len(bias), 1)
    with torch.no_grad():
        conv.weight.copy_(torch.linspace(-1, 1, 3 * len(bias)).view_as(conv.weight))
        conv.bias.copy_(torch.tensor(bias))
    x = torch.tensor([-1.0, 1.0]).repeat(2, 3, 4, 2)
    layer, grids = quantized(conv, x=x, **quantize)
    assert grids.activations.host_grid('/input').scale == 2.0**-7
    return layer, grids.step('conv')


def test_power_of_two_grid_is_widened_until_the_bias_fits():
    layer, step = with_bias([3.0, -700.0])
    need = power_of_two(700 / (2**15 - 1) / 2.0**-7)
    assert step.tolist() == [need, need]
    assert need > 2.0**-7
    integers = quantize_bias(layer.bias.detach(), step * 2.0**-7, 16)
    assert integers.abs().max() < 2**15 - 1


@pytest.mark.parametrize('constraint', ['saturate', False])
def test_grid_is_not_widened_unless_asked_for(constraint):
    _, step = with_bias([3.0, -700.0], constrain_bias=constraint)
    assert step.tolist() == [2.0**-7] * 2


def test_bias_that_fits_changes_no_grid():
    for bias in ([0.0, 0.0], [0.1, -0.2]):
        assert with_bias(bias)[1].tolist() == [2.0**-7] * 2


def test_weight_of_several_inputs_is_widened_for_the_finest():
    conv = nn.Conv2d(3, 2, 1)
    nn.init.constant_(conv.bias, 40.0)
    x = torch.tensor([-1.0, 1.0]).repeat(2, 3, 4, 2)
    net = Forward(lambda net, x: net.conv(x) + net.conv(x * 0.01), conv=conv)
    activations = calibrated(net, x, 'train').activations
    grids = WeightGrids(net.quantization.plan, net.quantization.layers, activations)
    grids.compute(net.quantization.bias_correction)
    finest = activations.host_grid('/mul').scale
    assert finest < activations.host_grid('/input').scale
    need = power_of_two(40 / (2**15 - 1) / finest)
    assert grids.step('conv').tolist() == [need, need]


def unconstrained(conv, norm=None):
    return quantized(conv, norm, constrain_weights=False)[0]


@pytest.mark.parametrize('outlier', [14.9, 15.1, 300.0, -300.0])
@pytest.mark.parametrize('width', [0.1, 0.5, 1.0])
def test_constrained_weights_are_the_formula(outlier, width):
    conv = nn.Conv2d(3, 5, 3, bias=False)
    with torch.no_grad():
        conv.weight.uniform_(-width, width)
        conv.weight[2, 1, 0, 0] = outlier
    before = conv.weight.detach().numpy().copy()
    magnitude = np.abs(before)
    # Both sizes of this weight are odd, so the median is an element.
    median = np.median(magnitude)
    expected = before
    clamps = magnitude.max() > 15 and magnitude.max() > 16 * median
    if clamps:
        limit = power_of_two(16 * median) * (1 - 8 / 128)
        expected = np.clip(before, -limit, limit)
    assert constrain_weights(unconstrained(conv)) == clamps
    np.testing.assert_allclose(conv.weight.detach().numpy(), expected)


def test_constraint_applies_to_the_folded_weight():
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        conv.weight.uniform_(-0.5, 0.5)
        norm.weight[2] = 200.0  # the outlier is in the normalization
        norm.weight[3] = 0.0
    layer = unconstrained(conv, norm)
    before = conv.weight.detach().clone()
    median = layer.folded()[0].detach().abs().median().item()
    assert constrain_weights(layer)
    limit = power_of_two(16 * median) * (1 - 8 / 128)
    assert layer.folded()[0].abs().max().item() == pytest.approx(limit)
    for channel in (0, 1, 3, 4):
        torch.testing.assert_close(conv.weight[channel], before[channel])


def test_what_is_left_of_a_sparse_weight_is_no_outlier():
    conv = nn.Conv2d(1, 10, 1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:4, 0, 0, 0] = torch.tensor([20.0, 1.0, -2.0, 3.0])
    before = conv.weight.detach().clone()
    assert not constrain_weights(unconstrained(conv))
    assert torch.equal(conv.weight, before)

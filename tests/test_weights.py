from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import ROUND, power_of_two
from torch import nn
from toy_models import Forward, randomize_norms

from mmquant_jacinto import PRESETS
from mmquant_jacinto.plan import WeightSpec
from mmquant_jacinto.weights import (
    Layer,
    constrain_weights,
    quantize_bias,
    quantize_weight,
    to_integers,
    weight_scale,
    widen_for_bias,
)

POWER = PRESETS['jacinto'].weight  # per tensor, power of two, half away
CHANNEL = PRESETS['tidl'].weight  # per channel, narrow range, half even


def make_layer(conv, norm=None, fmt=POWER):
    """A convolution or linear layer with what follows it."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
    channels = getattr(conv, 'out_channels', None) or conv.out_features
    modules = dict(conv=conv) if norm is None else dict(conv=conv, norm=norm)
    root = Forward(None, **modules)
    return Layer.find(root, WeightSpec(
        'conv', 'conv.weight', None if conv.bias is None else 'conv.bias',
        None if norm is None else 'norm', int(transposed), fmt, channels))


def sample_weight(fmt, *shape):
    """A weight, with ties and a channel that is all zero."""
    weight = torch.randn(*shape)
    weight[1] = 0
    weight[0].view(-1)[:4] = torch.tensor([-2.5, -1.5, 0.5, 1.5]) / 64
    return weight


def is_whole(x):
    return torch.allclose(x, x.round(), atol=1e-3)


@pytest.mark.parametrize('bits', [4, 8, 16])
def test_power_of_two_weights_are_the_formula(bits):
    fmt = POWER.with_bits(bits)
    weight = sample_weight(fmt, 4, 3, 3, 3)
    scale = weight_scale(weight, fmt, 0)
    half = 2 ** (bits - 1)
    w = weight.numpy().astype(np.float64)
    expected = power_of_two(np.abs(w).max()) / half
    assert scale.numel() == 1 and scale.item() == expected
    integers = np.clip(ROUND['half_away'](w / expected), -half, half - 1)
    np.testing.assert_array_equal(to_integers(weight, scale, fmt).numpy(), integers)


def test_weight_at_an_exact_power_of_two_saturates_like_the_original():
    weight = torch.tensor([[1.0, -1.0, 0.5]])
    scale = weight_scale(weight, POWER, 0)
    assert scale.item() == 1 / 128
    assert to_integers(weight, scale, POWER).tolist() == [[127, -128, 64]]


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('axis', [0, 1])
def test_per_channel_weights_are_the_formula(bits, axis):
    fmt = CHANNEL.with_bits(bits)
    weight = sample_weight(fmt, 4, 4, 3, 3)
    scale = weight_scale(weight, fmt, axis)
    high = 2 ** (bits - 1) - 1
    w = weight.numpy()
    others = tuple(d for d in range(4) if d != axis)
    reach = np.abs(w).max(others, keepdims=True)
    reach = np.maximum(reach, reach.max() / np.float32(256))
    expected = reach / np.float32(high)
    np.testing.assert_array_equal(scale.numpy(), expected)
    integers = np.rint(w / expected)
    np.testing.assert_array_equal(to_integers(weight, scale, fmt).numpy(), integers)
    # Symmetric about zero: the most negative integer is not used.
    assert integers.min() >= -high


def test_no_channel_is_finer_than_a_256th_of_the_coarsest():
    weight = torch.tensor([[1.0], [1e-6], [0.25]])
    scale = weight_scale(weight, CHANNEL, 0).flatten()
    assert (scale.max() / scale).tolist() == pytest.approx([1, 256, 4])


FOLDED = {
    'conv': (nn.Conv2d(4, 6, 3), F.conv2d, {}),
    'conv without bias': (nn.Conv2d(4, 6, 3, bias=False), F.conv2d, {}),
    'grouped': (nn.Conv2d(4, 6, 3, groups=2), F.conv2d, dict(groups=2)),
    'depthwise': (nn.Conv2d(4, 8, 3, groups=4), F.conv2d, dict(groups=4)),
    'transposed': (nn.ConvTranspose2d(4, 6, 2), F.conv_transpose2d, {}),
    'transposed square': (nn.ConvTranspose2d(4, 4, 2), F.conv_transpose2d, {}),
    'grouped transposed': (
        nn.ConvTranspose2d(4, 6, 2, groups=2), F.conv_transpose2d, dict(groups=2)),
    'depthwise transposed': (
        nn.ConvTranspose2d(4, 4, 2, groups=4), F.conv_transpose2d, dict(groups=4)),
    'linear': (nn.Linear(5, 6), F.linear, {}),
}


def layer_of(case):
    conv, function, options = FOLDED[case]
    linear = isinstance(conv, nn.Linear)
    channels = conv.out_features if linear else conv.out_channels
    norm = (nn.BatchNorm1d if linear else nn.BatchNorm2d)(channels)
    layer = make_layer(conv, randomize_norms(norm).eval())
    x = torch.randn(3, 5) if linear else torch.randn(2, 4, 5, 5)
    return layer, x, function, options


@pytest.mark.parametrize('case', FOLDED)
def test_folded_layer_computes_layer_and_normalization(case):
    layer, x, function, options = layer_of(case)
    folded = function(x, layer.folded_weight(), layer.folded_bias(), **options)
    torch.testing.assert_close(
        folded, layer.norm(layer.owner(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('case', FOLDED)
def test_weight_before_a_live_normalization_is_on_the_folded_grid(case):
    layer, *_ = layer_of(case)
    with torch.no_grad():
        layer.norm.weight[0] *= -1  # a grid is not turned by a negative factor
    factor = layer.along_channels(layer.fold_factor()).detach()
    scale = layer.scale().detach()
    weight = quantize_weight(layer.weight, scale, POWER, factor)
    steps = (weight * factor / scale).detach()
    assert is_whole(steps)
    torch.testing.assert_close(
        steps.round(), to_integers(layer.folded_weight(), scale, POWER))


def test_gradient_of_a_weight_passes_straight_through():
    weight = torch.randn(4, 3, requires_grad=True)
    arriving = torch.arange(12.0).view(4, 3)
    for factor in (None, torch.tensor([1.0, -2.0, 0.0, 3.0])[:, None]):
        weight.grad = None
        quantize_weight(weight, torch.tensor(0.5), POWER, factor).backward(arriving)
        assert torch.equal(weight.grad, arriving)


@pytest.mark.parametrize('fmt', [POWER, CHANNEL])
def test_channel_that_its_normalization_zeroes_is_on_its_own_grid(fmt):
    # As residual branches start; the weight must not turn into zero or NaN.
    weight = torch.randn(4, 3)
    factor = torch.tensor([1.0, 0.0, 1.0, 1.0])
    scale = weight_scale(weight, fmt, 0, factor)
    out = quantize_weight(weight, scale, fmt, factor[:, None])
    torch.testing.assert_close(out, weight, rtol=0, atol=2 / 128)
    assert is_whole((out / scale)[[0, 2, 3]])


@pytest.mark.parametrize('case', FOLDED)
def test_scale_is_that_of_the_folded_weight(case):
    # It is found without multiplying the weight.
    layer, *_ = layer_of(case)
    axis = layer.spec.axis
    # A grouped transposed convolution has no axis of output channels.
    has_axis = layer.weight.shape[axis] == layer.spec.channels
    for fmt in (POWER, CHANNEL) if has_axis else (POWER,):
        layer = layer._replace(spec=replace(layer.spec, format=fmt))
        expected = weight_scale(layer.folded_weight(), fmt, axis)
        torch.testing.assert_close(layer.scale(), expected)


@pytest.mark.parametrize('bits', [16, 32])
def test_bias_saturates(bits):
    limit = 2.0 ** (bits - 1)
    bias = torch.tensor([0.26, -0.24, 1e12, -1e12], dtype=torch.float64)
    assert quantize_bias(bias, 0.5, bits).tolist() == [1, 0, limit - 1, -limit]


def test_power_of_two_grid_is_widened_until_the_bias_fits():
    scale, bias = torch.tensor(2.0**-10), torch.tensor([3.0, -700.0])
    wide = widen_for_bias(scale, bias, 2.0**-7, 16, POWER)
    need = 700 / (2**15 - 1) / 2.0**-7
    assert wide.item() == power_of_two(need) > scale.item()
    assert quantize_bias(bias, wide * 2.0**-7, 16).abs().max() < 2**15 - 1


def test_per_channel_grid_is_widened_where_its_own_bias_needs_it():
    scale = torch.full((3, 1, 1, 1), 2.0**-10)
    bias = torch.tensor([0.0, 1e-3, 700.0])
    wide = widen_for_bias(scale, bias, 2.0**-7, 16, CHANNEL).flatten()
    assert wide[:2].tolist() == [2.0**-10] * 2
    assert wide[2].item() == pytest.approx(700 / (2**15 - 1) / 2.0**-7)


def test_bias_that_fits_changes_no_grid():
    scale = torch.tensor(2.0**-10)
    for bias in (torch.zeros(3), torch.tensor([0.1, -0.2, 0.0])):
        assert widen_for_bias(scale, bias, 2.0**-7, 16, POWER) == scale


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
    assert constrain_weights(make_layer(conv)) == clamps
    np.testing.assert_allclose(conv.weight.detach().numpy(), expected)


def test_constraint_applies_to_the_folded_weight():
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        conv.weight.uniform_(-0.5, 0.5)
        norm.weight[2] = 200.0  # the outlier is in the normalization
        norm.weight[3] = 0.0
    layer = make_layer(conv, norm)
    before = conv.weight.detach().clone()
    median = layer.folded_weight().detach().abs().median().item()
    assert constrain_weights(layer)
    limit = power_of_two(16 * median) * (1 - 8 / 128)
    assert layer.folded_weight().abs().max().item() == pytest.approx(limit)
    for channel in (0, 1, 3, 4):
        torch.testing.assert_close(conv.weight[channel], before[channel])

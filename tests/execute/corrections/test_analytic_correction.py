"""Analytic bias correction against what it stands for: the mean of the error."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import ROUND, convolve, power_of_two
from torch import nn
from toy_models import Forward, calibrated, randomize_norms

from mmquant_jacinto import QuantCalibrateModule
from mmquant_jacinto.execute.corrections.analytic_correction import MeanInputs

BITS = 3  # coarse, so that there is something to correct
ANALYTIC = dict(
    bits=dict(weight=BITS),
    constrain_bias=False,
    calibration=dict(bias_correction='analytic'),
    weight_observer='minmax',
    per_channel=False,
)


def on_grid(weight):
    """A weight on its grid of powers of two, by the formula: float64."""
    half = 2 ** (BITS - 1)
    weight = weight.detach().double().numpy()
    scale = power_of_two(np.abs(weight).max()) / half
    return np.clip(ROUND['half_away'](weight / scale), -half, half - 1) * scale


def correction_of(net, *batches):
    """The correction of the layer 'conv' after these batches."""
    calib = QuantCalibrateModule(net, batches[0], **ANALYTIC).train()
    for batch in batches:
        calib(batch)
    return calib.quantization.correction('conv').double().numpy()


@pytest.mark.parametrize('size', [1, 3])
def test_correction_is_the_papers_formula(size):
    # Without a border all positions of a 1 x 1 kernel see the mean; a larger kernel
    # does on an image that is constant.
    conv = nn.Conv2d(3, 4, size)
    x = torch.randn(2, 3, 7, 7) + 1
    if size > 1:
        x = x.mean((2, 3), keepdim=True).expand(-1, -1, 7, 7).contiguous()
    found = correction_of(Forward(lambda net, x: net.conv(x), conv=conv), x)
    error = on_grid(conv.weight) - conv.weight.detach().double().numpy()
    expected = -error.sum((2, 3)) @ x.double().mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 1e-3


@pytest.mark.parametrize('padding', [0, 1, 2])
@pytest.mark.parametrize('groups', [1, 2])
def test_border_is_exact(padding, groups):
    conv = nn.Conv2d(4, 6, 3, padding=padding, stride=2, groups=groups)
    x = torch.randn(2, 4, 5, 5) + 1
    found = correction_of(Forward(lambda net, x: net.conv(x), conv=conv), x)
    weight = conv.weight.detach().double().numpy()
    expected = convolve(
        x.double().numpy(), weight - on_grid(conv.weight), 2, padding, groups
    ).mean((0, 2, 3))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 1e-3


LAYERS = {
    'depthwise': (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 5, 5)),
    'dilated': (nn.Conv2d(4, 3, 3, dilation=2, padding='same'), (2, 4, 5, 5)),
    'one axis': (nn.Conv1d(4, 3, 3, padding=1), (2, 4, 9)),
    'transposed': (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5, 5),
    ),
    'grouped transposed': (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 3, 3)),
    'linear': (nn.Linear(5, 6), (3, 5)),
    'linear of tokens': (nn.Linear(5, 6), (3, 7, 5)),
}


@pytest.mark.parametrize('case', LAYERS)
def test_correction_takes_the_mean_error_of_any_layer_away(case):
    conv, shape = LAYERS[case]
    batches = [torch.randn(shape) + 1 for _ in range(3)]
    found = correction_of(
        Forward(lambda net, x: net.conv(x), conv=conv), *(x.clone() for x in batches)
    )
    exact = copy.deepcopy(conv).double()
    rounded = copy.deepcopy(exact)
    with torch.no_grad():
        rounded.weight.copy_(torch.from_numpy(on_grid(conv.weight)))
        x = torch.cat(batches).double()
        error = exact(x) - rounded(x)
    channels = -1 if isinstance(conv, nn.Linear) else 1
    expected = error.movedim(channels, 0).flatten(1).mean(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 1e-3


def test_correction_of_a_normalized_layer_is_that_of_the_folded_weight():
    norm = randomize_norms(nn.BatchNorm2d(4))
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    x = torch.randn(2, 3, 6, 6) + 1
    net = Forward(lambda net, x: net.norm(net.conv(x)), conv=conv, norm=norm).eval()
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = (conv.weight * factor[:, None, None, None]).detach()
    error = folded.double().numpy() - on_grid(folded)
    expected = convolve(x.double().numpy(), error, padding=1).mean((0, 2, 3))
    np.testing.assert_allclose(correction_of(net, x), expected, atol=1e-5)


def test_layer_that_runs_twice_counts_with_the_mean_of_its_runs():
    conv = nn.Conv2d(3, 4, 1)
    net = Forward(
        lambda net, x: net.conv(x[:, :, :4]) + net.conv(x[:, :, 4:]), conv=conv
    )
    x = torch.randn(2, 3, 8, 8) + 1
    error = on_grid(conv.weight) - conv.weight.detach().double().numpy()
    expected = -error.sum((2, 3)) @ x.double().mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(correction_of(net, x), expected, atol=1e-6)


def test_rows_of_a_parameter_are_corrected_each_by_its_input():
    net = Forward(
        lambda net, x: (
            F.linear(x, net.fc.weight[:3], net.fc.bias[:3]).sum(-1)
            + F.linear(x * 2, net.fc.weight[3:], net.fc.bias[3:]).sum(-1)
        ),
        fc=nn.Linear(5, 6),
    )
    x = torch.randn(4, 5) + 1
    calib = QuantCalibrateModule(net, x, **ANALYTIC).train()
    calib(x)
    for rows, factor in ((slice(0, 3), 1), (slice(3, 6), 2)):
        weight = net.fc.weight[rows].detach()
        error = weight.double().numpy() - on_grid(weight)
        name = f'fc[{rows.start}:{rows.stop}]'
        found = calib.quantization.correction(name).numpy()
        expected = error @ x.double().mean(0).numpy() * factor
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_corrected_model_has_the_means_of_the_float_one_and_its_weights(
    toy_net, images
):
    wanted = toy_net(images).mean(0).detach()
    before = {name: value.clone() for name, value in toy_net.state_dict().items()}

    def error(bias_correction):
        calib = QuantCalibrateModule(
            copy.deepcopy(toy_net),
            images,
            bits=dict(weight=4, activation=16),
            calibration=dict(bias_correction=bias_correction),
        ).train()
        calib(images)
        after = calib.module.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        return (calib.eval()(images).mean(0) - wanted).abs().max()

    assert error('analytic') < error(False) / 2


def test_batch_that_is_not_finite_or_empty_is_left_out():
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6) + 1
    broken = x.clone()
    broken[0, 0, 0, 0] = torch.nan
    net = Forward(lambda net, x: net.conv(x), conv=conv)
    alone = correction_of(copy.deepcopy(net), x)
    found = correction_of(net, x, broken, x[:0])
    np.testing.assert_allclose(found, alone, atol=1e-7)


def test_layer_that_never_ran_is_not_corrected(toy_net, images):
    quantization = calibrated(toy_net, images)
    assert not MeanInputs().correction(quantization).any()

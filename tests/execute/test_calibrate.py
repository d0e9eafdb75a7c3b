import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import ROUND, convolve, power_of_two, to_grid
from torch import nn
from toy_models import Forward, ToyNet, calibrated, make_plan, randomize_norms

from mmquant_jacinto import QuantCalibrateModule, quantize_model
from mmquant_jacinto.execute.calibrate import robust_mean

BITS = 4  # coarse, so that there is something to correct


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def one_layer():
    return Forward(lambda net, x: net.conv(x), conv=nn.Conv2d(3, 4, 3))


def quantized_mean(conv, x, given, correction):
    """Mean per channel of the quantized convolution, from the formulas."""
    high = 2 ** (BITS - 1)
    weight = conv.weight.detach().numpy().astype(np.float64)
    bias = conv.bias.detach().numpy().astype(np.float64) + correction
    scale = power_of_two(np.abs(weight).max()) / high
    weight = np.clip(ROUND['half_away'](weight / scale), -high, high - 1) * scale
    x = to_grid(x.numpy(), *given[:3], given.rounding) * given.scale
    return convolve(x, weight).mean((0, 2, 3)) + bias


def test_observed_model_computes_in_float(toy_net, images):
    expected = toy_net(images)
    quantization = calibrated(toy_net, images, 'observe')
    assert torch.equal(toy_net(images), expected)
    assert torch.equal(toy_net(images), expected)
    assert quantization.has_ranges


def test_ranges_are_those_of_the_float_model(toy_net, images):
    expected = {}
    for name in ('stem_norm', 'expand', 'fc'):
        toy_net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: expected.update({name: out})
        )
    quantization = calibrated(toy_net, images, observer='minmax')
    activations = quantization.activations
    assert activations.missing() == []
    ranges = {
        spec.name: (low, high)
        for spec, low, high in zip(activations.specs, activations.low, activations.high)
    }
    stem = F.relu(expected['stem_norm'])
    assert ranges['/input'] == (images.min(), images.max())
    assert ranges['stem/conv2d'] == (0, stem.max())
    assert ranges['expand/conv2d'] == (
        expected['expand'].min(),
        expected['expand'].max(),
    )
    assert ranges['fc/linear'] == (expected['fc'].min(), expected['fc'].max())


@pytest.mark.parametrize(
    'observer, factor_of_range', [('moving_average', 2), ('minmax', 3)]
)
def test_ranges_average_over_batches_or_hold_them_all(x, observer, factor_of_range):
    net = one_layer()
    calib = QuantCalibrateModule(net, x, observer=observer)
    for factor in (3.0, 1.0):
        calib.observe(x * factor)
    high = calib.quantization.activations.high[0].item()
    assert high == pytest.approx(factor_of_range * x.max().item())


def test_observed_mean_is_that_of_the_folded_layer(toy_net, images):
    means = {}
    for name in ('stem_norm', 'norm', 'expand', 'lateral', 'fc'):
        toy_net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: means.update({name: out})
        )
    calibration = dict(bias_correction='iterative')
    model = QuantCalibrateModule(toy_net, images, calibration=calibration)
    reference = model.observe(images)
    layers = dict(
        stem='stem_norm', conv='norm', expand='expand', lateral='lateral', fc='fc'
    )
    assert set(reference) == set(layers)
    for layer, module in layers.items():
        out = means[module].transpose(0, 1).flatten(1)
        torch.testing.assert_close(reference[layer][0], out.mean(1))


def test_layer_that_runs_twice_counts_with_the_mean_of_its_runs(x):
    net = Forward(
        lambda net, x: net.conv(x[:, :, :4]) + net.conv(x[:, :, 4:]),
        conv=nn.Conv2d(3, 4, 1),
    )
    model = QuantCalibrateModule(net, x, calibration=dict(bias_correction='iterative'))
    wanted = net.conv(x).mean((0, 2, 3)).detach()
    torch.testing.assert_close(model.observe(x)['conv'][0], wanted)


def test_robust_mean_is_that_of_most():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 50, 50) + torch.tensor([0.0, 2.0, -5.0]).view(3, 1, 1)
    expected = x.mean((0, 2, 3))
    torch.testing.assert_close(robust_mean(x, [0, 2, 3]), expected, atol=0.05, rtol=0)
    # One in a hundred reaches far, and moves the mean by one.
    x[:, :, ::10, ::10] += 100
    found = robust_mean(x, [0, 2, 3])
    assert ((found - expected).abs() < 0.1).all()
    assert ((x.mean((0, 2, 3)) - expected).abs() > 0.9).all()


# As the Jacinto devkit does.
ITERATIVE = dict(
    bits=BITS,
    constrain_bias=False,
    weight_observer='minmax',
    calibration=dict(bias_correction='iterative'),
)


def test_bias_step_is_the_formula(x):
    net = one_layer()
    calib = QuantCalibrateModule(net, x, **ITERATIVE)
    conv, lr = net.conv, 0.3
    float_mean = conv(x).detach().numpy().mean((0, 2, 3))
    expected = np.zeros(4)
    for _ in range(3):
        reference = calib.observe(x)
        given = calib.quantization.activations.host_grid('/input')
        quant_mean = quantized_mean(conv, x, given, expected)
        assert np.abs(float_mean - quant_mean).max() > 1e-3
        expected = expected + lr * (float_mean - quant_mean)
        calib.correct(reference, lr, x)
        np.testing.assert_allclose(
            calib.quantization.correction('conv').numpy(), expected, atol=1e-6
        )


def test_correction_brings_the_means_together(x):
    net = one_layer()
    wanted = net(x).mean((0, 2, 3)).detach()
    calib = QuantCalibrateModule(
        net,
        x,
        bits=dict(weight=BITS),
        calibration=dict(lr=0.5, bias_correction='iterative'),
    ).train()
    before = (calib(x).mean((0, 2, 3)) - wanted).abs().max()
    for _ in range(10):
        out = calib(x)
    assert (out.mean((0, 2, 3)) - wanted).abs().max() < before / 2
    tested = calib.eval()(x)
    assert (tested.mean((0, 2, 3)) - wanted).abs().max() < before / 2


def test_steps_of_a_pass_see_what_the_steps_before_corrected(x):
    # A pass of CalibrationLoop never goes back to the float model.
    net = Forward(
        lambda net, x: net.plain(F.relu(net.norm(net.conv(x)))),
        conv=nn.Conv2d(3, 4, 3, bias=False),
        norm=nn.BatchNorm2d(4),
        plain=nn.Conv2d(4, 4, 3, bias=False),
    )
    calib = QuantCalibrateModule(
        randomize_norms(net), x, **dict(ITERATIVE, bits=dict(weight=BITS))
    ).train()
    reference = calib.observe(x)

    def steps(module, count):
        for _ in range(count):
            module.correct(reference, 0.3, x)
        return module.quantization.bias_correction

    one_pass = steps(calib, 4).clone()
    calib.quantization.bias_correction.zero_()
    for _ in range(4):
        calib.observe(x)  # folds anew
        one_by_one = steps(calib, 1)
    torch.testing.assert_close(one_pass, one_by_one)
    assert one_pass.abs().max() > 1e-3
    settled = steps(calib, 60).clone()
    assert (steps(calib, 1) - settled).abs().max() < 1e-4


def test_correction_leaves_ranges_as_measured(toy_net, images):
    calib = QuantCalibrateModule(toy_net, images)
    reference = calib.observe(images)
    activations = calib.quantization.activations
    activations.settle()
    before = activations.low.clone(), activations.high.clone(), activations.count
    calib.correct(reference, 0.05, images * 10)
    assert torch.equal(activations.low, before[0])
    assert torch.equal(activations.high, before[1])
    assert activations.count.max() == 1
    assert activations.observing


@pytest.mark.parametrize('target', ['jacinto', 'tidl'])
def test_weights_and_statistics_stay(toy_net, images, target):
    before = {name: value.clone() for name, value in toy_net.state_dict().items()}
    calib = QuantCalibrateModule(toy_net, images, target=target).train()
    for _ in range(3):
        assert not calib(images).requires_grad
    after = toy_net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in toy_net.parameters())
    assert calib.quantization.bias_correction.any()


@pytest.mark.parametrize('constrain', [True, False])
def test_outliers_of_weights_are_clamped_only_if_asked_for(x, constrain):
    net = one_layer()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = 100.0
    calib = QuantCalibrateModule(net, x, constrain_weights=constrain).train()
    calib(x)
    assert (net.conv.weight.max().item() < 100) == constrain
    assert bool(calib.quantization.constrained) == constrain


def test_ranges_are_those_of_the_constrained_weights(x):
    # An outlier that will be clamped must not widen the output's range.
    net = one_layer()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = 100.0
    calib = QuantCalibrateModule(net, x, observer='minmax').train()
    calib(x)
    high = calib.quantization.activations.high[1]
    torch.testing.assert_close(high, net.conv(x).max().detach())


def test_no_epochs_of_correction_measure_only(toy_net, images):
    calib = QuantCalibrateModule(toy_net, images, calibration=dict(epochs=0)).train()
    calib(images)
    assert calib.quantization.has_ranges
    assert not calib.quantization.bias_correction.any()


def test_correction_survives_a_state_dict(toy_net, images):
    calib = QuantCalibrateModule(toy_net, images).train()
    calib(images)
    other = randomize_norms(ToyNet())
    quantization = quantize_model(other, make_plan(other, images))
    other.load_state_dict(toy_net.state_dict())
    assert torch.equal(quantization.bias_correction, calib.quantization.bias_correction)


WEIGHTS = dict(
    bits=BITS,
    constrain_bias=False,
    weight_observer='minmax',
    calibration=dict(weights=True, bias_correction=False),
)


def test_weight_step_is_the_formula(x):
    net = one_layer()
    calib = QuantCalibrateModule(net, x, **WEIGHTS)
    conv, lr, half = net.conv, 0.3, 2 ** (BITS - 1)
    weight = conv.weight.detach().numpy().astype(np.float64)
    wanted = convolve(x.double().numpy(), weight).std((0, 2, 3))
    factor = np.ones(4)
    for _ in range(3):
        reference = calib.observe(x)
        given = calib.quantization.activations.host_grid('/input')
        values = to_grid(x.numpy(), *given[:3], given.rounding) * given.scale
        corrected = weight * factor[:, None, None, None]
        scale = power_of_two(np.abs(corrected).max()) / half
        steps = ROUND['half_away'](corrected / scale)
        rounded = np.clip(steps, -half, half - 1) * scale
        ratio = wanted / convolve(values.astype(np.float64), rounded).std((0, 2, 3))
        assert np.abs(ratio - 1).max() > 1e-3
        factor = factor * np.clip(ratio, 1 / 2, 2) ** lr
        calib.correct(reference, lr, x)
        found = calib.quantization.weight_correction.numpy()
        np.testing.assert_allclose(found, factor, rtol=1e-5)
    assert not calib.quantization.bias_correction.any()


def test_weights_and_biases_are_corrected_together():
    net = Forward(lambda net, x: net.conv(x), conv=nn.Conv2d(16, 4, 3))
    x = torch.randn(2, 16, 8, 8)
    wanted = net(x).detach()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calib = QuantCalibrateModule(
        net,
        x,
        bits=dict(weight=BITS),
        weight_observer='minmax',
        calibration=dict(weights=True, lr=0.1, bias_correction='iterative'),
    ).train()

    def errors(out):
        out, dims = out.detach(), (0, 2, 3)
        means = (out.mean(dims) - wanted.mean(dims)).abs()
        return means.max(), (out.std(dims) / wanted.std(dims) - 1).abs().max()

    first = errors(calib(x))
    for _ in range(40):
        calib(x)
    last = errors(calib.eval()(x))
    assert last[0] < first[0] / 2
    assert last[1] < first[1]
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def deep_net():
    def forward(net, x):
        for layer in net.children():
            x = F.relu(layer(x))
        return x

    layers = {f'conv{i}': nn.Conv2d(8, 8, 3, padding=1) for i in range(8)}
    return Forward(forward, **layers)


def sequentially_corrected(net, batches, **options):
    calib = QuantCalibrateModule(
        net,
        batches[0],
        bits=dict(weight=4, activation=8),
        edge_bits=4,
        target='onnxruntime',
        weight_observer='minmax',
        calibration=dict(bias_correction='sequential', **options),
    )
    references = [calib.observe(x) for x in batches]
    for reference, x in zip(references, batches):
        calib.correct(reference, 0.05, x)
    return calib.eval()


@pytest.mark.parametrize('count', [1, 3])
def test_weights_are_corrected_in_order_and_deviations_are_those_in_float(count):
    torch.manual_seed(0)
    net, batches = deep_net(), [torch.randn(4, 8, 16, 16) for _ in range(count)]
    test = torch.cat(batches)
    with torch.no_grad():
        wanted = net(test)
        found = {
            weights: sequentially_corrected(net, batches, weights=weights)(test)
            for weights in (False, True)
        }
    dims = (0, 2, 3)
    varies = wanted.std(dims) > 1e-3

    def off(out, moment):
        return (moment(out) - moment(wanted))[varies].abs().mean()

    def deviation(out):
        return out.std(dims)

    # All at once, each layer would answer for those before it: deviations run away.
    assert off(found[True], deviation) < 0.7 * off(found[False], deviation)
    errors = {
        weights: (out - wanted).square().mean() / wanted.var()
        for weights, out in found.items()
    }
    assert errors[True] < 1.1 * errors[False], errors


def test_a_bias_is_that_of_the_weight_as_it_is_corrected_with_it(x):
    net = one_layer()
    calib = QuantCalibrateModule(
        net,
        x,
        **dict(WEIGHTS, calibration=dict(weights=True, bias_correction='iterative')),
    )
    reference = calib.observe(x)
    given = calib.quantization.activations.host_grid('/input')
    calib.correct(reference, 1.0, x)
    ratios = calib.quantization.weight_correction.numpy()
    assert np.abs(ratios - 1).max() > 1e-2
    bias = net.conv.bias.detach().numpy()
    products = quantized_mean(net.conv, x, given, 0.0) - bias
    wanted = net.conv(x).detach().mean((0, 2, 3)).numpy() - (ratios * products + bias)
    found = calib.quantization.bias_correction.numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_channel_that_does_not_vary_keeps_its_weights(x):
    net = one_layer()
    with torch.no_grad():
        net.conv.weight[1] = 0
        net.conv.weight[2] *= 1e-3  # rounded to zero
    calib = QuantCalibrateModule(net, x, **WEIGHTS).train()
    calib(x)
    factor = calib.quantization.weight_correction
    assert factor[1:3].tolist() == [1, 1]
    assert factor[0] != 1
    calib(torch.full_like(x, torch.nan))
    assert torch.equal(calib.quantization.weight_correction, factor)


def test_corrected_weights_survive_a_state_dict(toy_net, images):
    calib = QuantCalibrateModule(
        toy_net, images, bits=8, calibration=dict(weights=True, lr=1.0)
    ).train()
    for _ in range(3):
        calib(images)
    expected = calib.eval()(images)
    other = randomize_norms(ToyNet()).eval()
    quantization = quantize_model(other, make_plan(other, images, bits=8))
    quantization.set_phase('test')
    other.load_state_dict(toy_net.state_dict())
    assert torch.equal(other(images), expected)
    # It is the factors that make the difference.
    quantization.weight_correction.fill_(1)
    quantization.set_phase('test')
    assert not torch.equal(other(images), expected)


@pytest.mark.parametrize('normalized', [False, True])
def test_gradient_of_a_corrected_weight_has_the_factor(x, normalized):
    conv = nn.Conv2d(3, 4, 3)
    norm = randomize_norms(nn.BatchNorm2d(4)) if normalized else nn.Identity()
    net = Forward(lambda net, x: net.norm(net.conv(x)), conv=conv, norm=norm).eval()
    quantization = calibrated(net, x, 'train', bits=16)
    # Not above 1: a larger output would be clipped.
    quantization.weight_correction.copy_(torch.tensor([0.5, 1.0, 0.75, 0.25]))
    quantization.note_weight_correction()
    other = torch.randn(2, 4, 6, 6)
    (net(x) * other).sum().backward()
    exact = conv.weight.detach().double().requires_grad_()
    factor = quantization.weight_correction.double()[:, None, None, None]
    out = F.conv2d(x.double(), exact * factor, conv.bias.double())
    out = copy.deepcopy(norm).double()(out)
    (out * other).sum().backward()
    torch.testing.assert_close(
        conv.weight.grad.double(), exact.grad, rtol=1e-2, atol=1e-2
    )

"""Learned scales against the formulas of LSQ, written in NumPy."""

import copy

import numpy as np
import pytest
import torch
from reference import ROUND
from torch import nn
from toy_models import Forward, ToyNet, make_plan, randomize_norms

from mmquant_jacinto import (
    QuantizeConfig,
    QuantizeError,
    QuantTestModule,
    QuantTrainModule,
    native,
)
from mmquant_jacinto.plan.plan import ActivationSpec, WeightSpec
from mmquant_jacinto.quantizers.learned_scales import (
    LearnedActivationScales,
    LearnedWeightScales,
    learned_quantize,
    learned_weight,
)
from mmquant_jacinto.targets.grid import Grid
from mmquant_jacinto.targets.target import PRESETS

AFFINE = PRESETS['onnxruntime'].activation
POWER = PRESETS['jacinto'].activation


@pytest.fixture(params=['C', 'torch'])
def kernels(request, monkeypatch):
    if request.param == 'torch':
        monkeypatch.setattr(native, '_library', None)


def lsq(x, grad, grid, clip):
    """Gradients of input, step and zero point, element by element."""
    low, high = grid.low * grid.scale, grid.high * grid.scale
    above, below = (end if end is not None else s for end, s in zip(clip, (-9e9, 9e9)))
    to_x, to_step, to_zero = np.zeros_like(x), 0.0, 0.0
    for i in np.ndindex(x.shape):
        v = min(max(x[i], above), below)
        if v < low or (v == low and x[i] < low):
            to_step += grad[i] * grid.low
            to_zero -= grad[i] * grid.scale
        elif v > high or (v == high and x[i] > high):
            to_step += grad[i] * grid.high
            to_zero -= grad[i] * grid.scale
        else:
            steps = v / grid.scale
            to_step += grad[i] * (ROUND[grid.rounding](np.float64(steps)) - steps)
            to_x[i] = grad[i] if above < x[i] < below and low < x[i] < high else 0
    return to_x, to_step, to_zero


@pytest.mark.parametrize('clip', [(None, None), (0.0, None), (-0.4, 0.6)])
@pytest.mark.parametrize('fmt', [AFFINE, POWER])
def test_gradients_of_activations_are_those_of_lsq(fmt, clip, kernels):
    specs = [ActivationSpec(str(i), 'activation', fmt) for i in range(3)]
    scales = LearnedActivationScales(specs)
    grid = Grid(0.0078125, -100, 155, 256, fmt.rounding)
    x = torch.randn(4, 3, 11, 13, requires_grad=True)
    grad = torch.randn(4, 3, 11, 13)
    out = learned_quantize(x, grid, clip, scales, 1)
    out.backward(grad)
    to_x, to_step, to_zero = lsq(
        x.detach().numpy().astype(float), grad.numpy().astype(float), grid, clip
    )
    share = (3 * 11 * 13 * 128) ** -0.5
    np.testing.assert_allclose(x.grad.numpy(), to_x, rtol=1e-6)
    expected = [0, to_step * grid.scale * np.log(2) * share, 0]
    np.testing.assert_allclose(scales.log2_scale.grad.numpy(), expected, rtol=1e-3)
    if fmt is AFFINE:
        expected = [0, to_zero * share, 0]
        np.testing.assert_allclose(scales.zero_point.grad.numpy(), expected, rtol=1e-3)
    else:
        assert scales.zero_point is None


@pytest.mark.parametrize('per_channel', [True, False])
def test_gradients_of_weights_are_those_of_lsq(per_channel):
    fmt = PRESETS['onnxruntime' if per_channel else 'jacinto'].weight.with_bits(4)
    spec = WeightSpec('w', 'w.weight', None, None, 0, fmt, 5)
    scales = LearnedWeightScales({'v': spec, 'w': spec})
    rows = torch.randn(5, 20, requires_grad=True)
    step = torch.tensor([0.25, -0.125, 0.25, 0.5, 0.0625])
    grad = torch.randn(5, 20)
    out = learned_weight(rows, step, scales, 'w', fmt)
    out.backward(grad)
    high = 7
    low = -high if fmt.narrow_range else -high - 1
    steps = rows.detach().numpy().astype(float) / step.numpy()[:, None]
    integers = np.clip(np.rint(steps), low, high)
    np.testing.assert_allclose(
        out.detach().numpy(), integers * step.numpy()[:, None], rtol=1e-6
    )
    inside = (steps >= low) & (steps <= high)
    np.testing.assert_allclose(rows.grad.numpy(), grad.numpy() * inside)
    terms = grad.numpy() * np.where(inside, integers - steps, integers)
    each = (terms * step.numpy()[:, None]).sum(1) * np.log(2)
    if per_channel:
        expected = np.concatenate([np.zeros(5), each / np.sqrt(20 * high)])
    else:
        expected = np.array([0, each.sum() / np.sqrt(100 * high)])
    np.testing.assert_allclose(scales.log2_scale.grad.numpy(), expected, rtol=1e-4)


def test_power_of_two_steps_stay_powers_of_two():
    scales = LearnedActivationScales([ActivationSpec('a', 'activation', POWER)])
    for learned, factor in ((0.4, 1.0), (0.6, 2.0), (-1.7, 0.25)):
        with torch.no_grad():
            scales.log2_scale.fill_(learned)
        one = torch.ones(1, dtype=torch.float64)
        scale, low, high = scales.adjust(one / 8, -128 * one, 127 * one)
        assert scale.item() == factor / 8
        assert (low.item(), high.item()) == (-128, 127)


def test_zero_points_move_and_stay_on_the_grid():
    scales = LearnedActivationScales([ActivationSpec('a', 'activation', AFFINE)])
    one = torch.ones(1, dtype=torch.float64)
    for learned, low in ((0.4, -100), (3.0, -103), (-7.6, -92), (500.0, -255)):
        with torch.no_grad():
            scales.zero_point.fill_(learned)
        _, lowest, highest = scales.adjust(one, -100 * one, 155 * one)
        assert (lowest.item(), highest.item()) == (low, low + 255)


def train(model, target='onnxruntime', steps=30, **quantize):
    x = torch.randn(8, 3, 8, 8)
    goal = copy.deepcopy(model).eval()(x).detach()
    wrapped = QuantTrainModule(
        model, x, target=target, bits=4, learned_scale=True, **quantize
    ).train()
    for norm in wrapped._norms():
        norm.eval()
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = (wrapped(x) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return wrapped, x, losses


@pytest.mark.parametrize('target', ['onnxruntime', 'jacinto'])
def test_scales_learn_and_the_checkpoint_tests_the_same(target):
    torch.manual_seed(0)
    wrapped, x, losses = train(randomize_norms(ToyNet()), target)
    # The first batch has given the first ranges before it is quantized.
    assert losses[0] > 1e-5
    # What the first steps upset, at a rate so large, is learned again.
    assert losses[-1] < max(losses) / 2
    learned = wrapped.quantization.activations.learned
    assert (learned.log2_scale != 0).all()
    assert wrapped.quantization.learned.log2_scale.abs().max() > 0
    wrapped.eval()
    state = wrapped.module.state_dict()
    expected = wrapped(x)
    test = QuantTestModule(ToyNet()).eval()
    test.module.load_state_dict(state)
    assert torch.equal(test(x), expected)


def test_training_computes_what_the_test_does():
    torch.manual_seed(0)
    wrapped, x, _ = train(randomize_norms(ToyNet()), light_share=0)
    simulated = wrapped(x)
    wrapped.eval()
    step = max(
        wrapped.quantization.activations.host_grid(spec.name).scale
        for spec in wrapped.plan.activations
        if spec.kind == 'output'
    )
    difference = (wrapped(x) - simulated).abs()
    # A tie here and there is rounded the other way.
    assert (difference > step / 2).float().mean() < 0.1


def test_all_learned_scales_have_gradients_in_the_first_step():
    x = torch.randn(2, 3, 8, 8)
    model = QuantTrainModule(ToyNet(), x, target='tidl', learned_scale=True).train()
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_transposed_and_live_layers_train():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 5)
    net = Forward(
        lambda net, x: net.up(net.norm(net.conv(x))),
        conv=nn.Conv2d(4, 6, 3, groups=2),
        norm=nn.BatchNorm2d(6),
        up=nn.ConvTranspose2d(6, 4, 3),
    )
    nn.init.uniform_(net.norm.weight, -1.0, 1.0)
    model = QuantTrainModule(net, x, target='tidl', bits=8, learned_scale=True)
    reference = copy.deepcopy(net).train()
    reference.quantization.detach()
    model.train()
    model(x)
    expected = reference(x).detach()
    noise = (model(x) - expected).square().mean() / expected.square().mean()
    assert noise < 1e-3
    model(x).square().sum().backward()
    assert model.quantization.learned.log2_scale.grad.abs().min() > 0


def test_weights_of_least_squared_error_beat_those_of_the_range():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    errors = {}
    for observer in ('minmax', 'mse'):
        torch.manual_seed(1)
        model = randomize_norms(ToyNet())
        for layer in (model.stem, model.conv):
            nn.init.normal_(layer.weight)
        model = QuantTrainModule(
            model,
            x,
            target='tidl',
            bits=4,
            edge_bits=4,
            learned_scale=False,
            weight_observer=observer,
        ).train()
        model(x)
        quantization = model.quantization
        given = quantization.weight_scale
        assert bool((given > 0).all()) == (observer == 'mse')
        behaviour = quantization.executor.behaviour
        total = 0.0
        for name, layer in quantization.layers.items():
            step = layer.along_channels(behaviour.grids.step(name))
            weight = layer.folded()[0].detach()
            grid = torch.round(weight / step).clamp(-7, 7) * step
            total += (grid - weight).square().sum().item()
        errors[observer] = total
    assert errors['mse'] < 0.9 * errors['minmax']


def test_a_calibrated_state_starts_a_training_with_learned_scales():
    x = torch.randn(2, 3, 8, 8)
    plans = [
        make_plan(ToyNet(), x, target='tidl', **more)
        for more in (dict(mode='ptq', observer='mse'), dict(learned_scale=True))
    ]
    assert plans[1].takes_state_of(plans[0])
    assert not plans[0].takes_state_of(plans[1])
    assert not plans[1].takes_state_of(make_plan(ToyNet(), x, target='jacinto'))


@pytest.mark.parametrize(
    'quantize, message',
    [
        (
            dict(mode='ptq', learned_scale=True),
            'quantize.learned_scale is for a run',
        ),
        (dict(learned_scale=dict(lr_mult=0)), 'quantize.learned_scale.lr_mult=0'),
        (dict(learned_scale=dict(lr=0)), 'quantize.learned_scale.lr is not a known'),
        (dict(learned_scale=3), 'quantize.learned_scale=3 is not a dict'),
        (dict(weight_observer='best'), "quantize.weight_observer='best' is unknown"),
    ],
)
def test_bad_values_are_refused(quantize, message):
    with pytest.raises(QuantizeError, match=message):
        QuantizeConfig.parse(quantize)


def learning(net, image, **quantize):
    """A model with learned scales, its ranges measured."""
    model = QuantTrainModule(
        net, image, target='onnxruntime', learned_scale=True, **quantize
    )
    model.train()
    model(image)
    return model


def test_frozen_layers_have_a_graph_of_their_own_in_each_pass():
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(2, 3, 16, 16)
    for parameter in (*net.stem.parameters(), *net.conv.parameters()):
        parameter.requires_grad_(False)
    model = learning(net, image, freeze=dict(bn=0), total_epochs=2)
    scales = model.quantization.learned.log2_scale
    for _ in range(2):  # nothing has moved in between
        scales.grad = None
        model(image).square().sum().backward()
        assert scales.grad.isfinite().all() and scales.grad.any()


def test_an_empty_batch_has_gradients_of_zero():
    net = Forward(lambda net, x: net.conv(x).relu(), conv=nn.Conv2d(3, 4, 3))
    model = learning(net, torch.randn(2, 3, 8, 8))
    model(torch.zeros(0, 3, 8, 8)).sum().backward()
    scales = model.quantization.activations.learned
    assert all(not p.grad.any() for p in scales.parameters())


def test_a_checkpoint_of_another_plan_leaves_the_scales_as_they_are():
    torch.manual_seed(0)
    net, image = ToyNet(), torch.randn(2, 3, 16, 16)
    trained = learning(net, image, bits=8)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'log2_scale' in name:
                parameter.fill_(2.0)
    other = QuantTrainModule(
        ToyNet(), image, target='onnxruntime', learned_scale=True, bits=4
    )
    other.quantization.on_other_plan = 'ignore'
    other.module.load_state_dict(trained.module.state_dict(), strict=False)
    assert torch.equal(other.module.stem.weight, net.stem.weight)
    assert not other.quantization.learned.log2_scale.any()
    assert not other.quantization.activations.learned.log2_scale.any()

"""Rounding of weights: what is chosen, what is left, what a checkpoint has of it."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from reference import convolve
from torch import nn
from toy_models import Forward, ToyNet, make_plan, randomize_norms

from mmquant_jacinto import (
    QuantCalibrateModule,
    QuantizeConfig,
    QuantizeError,
    QuantTestModule,
)
from mmquant_jacinto.config.sections import Rounding
from mmquant_jacinto.methods import reconstruction as reconstruct
from mmquant_jacinto.methods.layer_samples import (
    Collected,
    CollectInputs,
    CollectOutputs,
    Enough,
)
from mmquant_jacinto.methods.reconstruction import generations
from mmquant_jacinto.methods.rounding import (
    RoundingTask,
    output_of,
    round_weight,
    soft_round,
)
from mmquant_jacinto.targets.formats import integer_bounds
from mmquant_jacinto.targets.target import PRESETS

FORMAT = PRESETS['onnxruntime'].weight.with_bits(4)
STEP = torch.tensor([[0.1], [0.2], [0.15], [0.1]])


def squared_error(inputs, target, weight):
    return (output_of(inputs, weight) - target).square().sum(0)


def correlated_rows(size):
    """Inputs that leave rounding to nearest far from the best."""
    inputs = torch.randn(size, 1, 6) @ (torch.eye(6) + 0.9 * torch.ones(6, 6))
    return inputs - inputs.mean(0)


def task_of(inputs, target, weight):
    return RoundingTask(inputs, target, weight, STEP, FORMAT)


METHODS = [Rounding('adaround', iterations=600), Rounding('coordinate_descent')]


@pytest.mark.parametrize('options', METHODS, ids=lambda options: options.method)
def test_rounding_is_near_that_of_an_exhaustive_search(options):
    torch.manual_seed(0)
    inputs, weight = correlated_rows(512), torch.randn(4, 6) * 0.4
    target = output_of(inputs, weight)
    floor = (weight / STEP).floor()
    low, high = integer_bounds(FORMAT)
    costs = []
    for ups in itertools.product((0.0, 1.0), repeat=6):
        integers = (floor + torch.tensor(ups)).clamp(low, high)
        costs.append(squared_error(inputs, target, integers * STEP))
    best = torch.stack(costs).amin(0)
    nearest = (weight / STEP).round().clamp(low, high) * STEP
    integers = round_weight(task_of(inputs, target, weight), options)
    found = squared_error(inputs, target, integers * STEP)
    plain = squared_error(inputs, target, nearest)
    assert (found <= plain).all()
    assert (plain - found).sum() > 0.7 * (plain - best).sum() > 0
    if options.method == 'adaround':
        assert ((integers - (weight / STEP).clamp(-7, 7)).abs() < 1).all()


def test_descent_ends_where_no_weight_alone_can_be_better():
    torch.manual_seed(0)
    inputs, weight = correlated_rows(512), torch.randn(4, 6) * 0.4
    target = output_of(inputs, weight) + 0.1 * torch.randn(512, 4)
    target -= target.mean(0)
    options = Rounding('coordinate_descent', damping=1e-9)
    found = round_weight(task_of(inputs, target, weight), options)
    least = squared_error(inputs, target, found * STEP)
    for column in range(6):
        for move in (-1, 1):
            other = found.clone()
            other[:, column] = (other[:, column] + move).clamp(-7, 7)
            cost = squared_error(inputs, target, other * STEP)
            assert (cost >= least * (1 - 1e-5)).all()


def test_rounding_is_never_worse_than_to_nearest():
    inputs, weight = correlated_rows(64), torch.randn(4, 6) * 0.4
    target = output_of(inputs, weight)
    nearest = (weight / STEP).round().clamp(-7, 7)
    options = Rounding('adaround', iterations=1)
    integers = round_weight(task_of(inputs, target, weight), options)
    found, plain = (
        squared_error(inputs, target, w * STEP) for w in (integers, nearest)
    )
    assert (found <= plain).all()


def test_groups_are_rounded_each_by_itself():
    torch.manual_seed(0)
    inputs = torch.randn(256, 2, 6) @ (torch.eye(6) + 0.9 * torch.ones(6, 6))
    inputs -= inputs.mean(0)
    weight = torch.randn(4, 6) * 0.4
    target = output_of(inputs, weight)
    options = METHODS[1]
    together = round_weight(task_of(inputs, target, weight), options)
    for group, rows in enumerate((slice(0, 2), slice(2, 4))):
        part = inputs[:, group : group + 1], target[:, rows], weight[rows], STEP[rows]
        alone = round_weight(RoundingTask(*part, FORMAT), options)
        assert torch.equal(alone, together[rows])


def test_soft_rounding_is_the_rectified_sigmoid():
    v = torch.linspace(-8, 8, 33, dtype=torch.float64)
    expected = np.clip(1.2 / (1 + np.exp(-v.numpy())) - 0.1, 0, 1)
    np.testing.assert_allclose(soft_round(v).numpy(), expected)
    assert soft_round(v)[0] == 0 and soft_round(v)[-1] == 1


class Net(BaseModel):
    """A model of MMEngine around a network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs, mode='tensor'):
        return self.net(inputs)


def calibrate(net, batches, method='coordinate_descent', **quantize):
    model = QuantCalibrateModule(
        Net(net).eval(), batches[0]['inputs'], rounding=method, **quantize
    ).train()
    for batch in batches:
        model.calibrate_step(batch, None, 0.0)
    return model


def batches_of(*shape, count=6):
    return [dict(inputs=torch.randn(shape)) for _ in range(count)]


def layers():
    """Layers of each kind that has rows, and one that has none."""
    return {
        'conv': (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 4, 9, 9)),
        'groups': (nn.Conv2d(4, 6, 3, padding=(1, 0), groups=2), (4, 4, 9, 9)),
        'dilated': (nn.Conv2d(4, 6, 3, padding='same', dilation=2), (4, 4, 9, 9)),
        'one dimension': (nn.Conv1d(4, 6, 3, padding=1, groups=2), (4, 4, 9)),
        'linear': (nn.Linear(4, 6), (4, 7, 4)),
    }


@pytest.mark.parametrize('kind', layers())
def test_rows_give_what_the_layer_gives(kind):
    layer, shape = layers()[kind]
    batches = batches_of(*shape, count=2)
    model = calibrate(Forward(lambda net, x: net.layer(x), layer=layer), batches)
    state = model.quantization
    found = []
    for collector, *more in ((CollectOutputs,), (CollectInputs, {})):
        collected = Collected(state, ['net.layer'], 2)
        collected.share['net.layer'] = 10
        state.executor.behaviour = collector(state, collected, *more)
        with torch.no_grad():
            for batch in batches:
                with contextlib.suppress(Enough):
                    model.module(**batch)
        found.append(collected.take('net.layer'))
    outputs, inputs = found
    weight = layer.weight.detach().flatten(1)
    expected = output_of(inputs, weight) + layer.bias.detach()
    # The inputs are on a grid of eight bits, the outputs are the float layer's.
    noise = (expected - outputs).square().mean() / outputs.square().mean()
    assert len(outputs) == 20
    assert noise < 1e-3


def signal_to_noise(model, net, batches):
    """In decibel, of the integer model."""
    model.eval()
    signal = noise = 0.0
    with torch.no_grad():
        for batch in batches:
            expected = net(batch['inputs'])
            signal += expected.square().sum()
            noise += (model(**batch) - expected).square().sum()
    model.train()
    return 10 * torch.log10(signal / noise).item()


@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
def test_a_network_gains_and_its_checkpoint_tests_the_same(target):
    results = {}
    for method in ('nearest', 'adaround', 'coordinate_descent'):
        torch.manual_seed(0)
        net = randomize_norms(ToyNet()).eval()
        batches = batches_of(4, 3, 16, 16, count=16)
        reference = ToyNet().eval()
        reference.load_state_dict(net.state_dict())
        bits = dict(weight=4, activation=8)
        model = calibrate(net, batches, method, target=target, bits=bits)
        if method != 'nearest':
            model.round_weights(batches)
        results[method] = signal_to_noise(model, reference, batches)
    assert results['adaround'] > results['nearest'] + 2
    assert results['coordinate_descent'] > results['nearest'] + 4
    model.eval()
    test = QuantTestModule(Net(ToyNet())).eval()
    test.module.load_state_dict(model.module.state_dict())
    assert torch.equal(test(**batches[0]), model(**batches[0]))


@pytest.mark.parametrize('method', ['adaround', 'coordinate_descent'])
def test_an_image_that_gives_nan_is_left_out(method):
    torch.manual_seed(0)
    batches = batches_of(2, 3, 16, 16, count=4)
    model = calibrate(randomize_norms(ToyNet()).eval(), batches, method)
    broken = {name: x.clone() for name, x in batches[1].items()}
    for x in broken.values():
        x[0] = torch.nan
    model.round_weights([batches[0], broken, *batches[2:]])
    state = model.module.state_dict()
    assert all(x.isfinite().all() for x in state.values())
    assert state['quantization.bias_correction'].any()


def test_rounding_reaches_weights_that_calibration_has_corrected():
    torch.manual_seed(0)
    batches = batches_of(4, 3, 16, 16, count=4)
    net = randomize_norms(ToyNet()).eval()
    calibration = dict(weights=True)
    model = calibrate(net, batches, calibration=calibration)
    for batch in batches:
        model.calibrate_step(batch, model.calibrate_step(batch, None, 0.0), 0.05)
    before = net.stem.weight.detach().clone()
    assert (model.quantization.weight_correction != 1).any()
    model.round_weights(batches)
    assert not torch.equal(net.stem.weight, before)
    layer = model.quantization.layers['net.stem']
    scale = model.quantization.part_of(model.quantization.weight_scale, 'net.stem')
    folded = layer.folded()[0].detach()
    steps = folded / layer.along_channels(scale)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


@torch.no_grad()
def test_adaround_needs_no_gradients_around_it():
    torch.manual_seed(0)
    inputs, weight = correlated_rows(64), torch.randn(4, 6) * 0.4
    target = output_of(inputs, weight)
    options = Rounding('adaround', iterations=5)
    found = round_weight(task_of(inputs, target, weight), options)
    with torch.enable_grad():
        expected = round_weight(task_of(inputs, target, weight), options)
    assert torch.equal(found, expected)


def test_generations_depend_on_earlier_ones_only():
    names = generations(make_plan(ToyNet(), torch.randn(2, 3, 8, 8)))
    assert names == [['stem'], ['conv'], ['expand'], ['lateral'], ['fc']]
    branches = Forward(
        lambda net, x: net.last(net.left(x) + net.right(x)),
        left=nn.Conv2d(3, 4, 1),
        right=nn.Conv2d(3, 4, 1),
        last=nn.Conv2d(4, 4, 1),
    )
    names = generations(make_plan(branches, torch.randn(2, 3, 8, 8)))
    assert names == [['left', 'right'], ['last']]


def test_weights_are_on_the_grid_that_was_chosen():
    torch.manual_seed(0)
    batches = batches_of(4, 3, 16, 16)
    few = dict(bits=4, edge_bits=4)
    model = calibrate(randomize_norms(ToyNet()), batches, target='tidl', **few)
    model.round_weights(batches)
    state = model.quantization
    assert (state.weight_scale > 0).all()
    state.set_phase('test')
    for name, layer in state.layers.items():
        scale = layer.along_channels(state.part_of(state.weight_scale, name))
        steps = layer.folded()[0] / scale
        assert (steps - steps.round()).abs().max() < 1e-3
        assert steps.abs().max() < 7.001


def test_bias_gives_the_means_of_the_float_layer():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    batches = [dict(inputs=torch.rand(8, 3, 10, 10)) for _ in range(8)]
    reference = conv.weight.detach().numpy().copy(), conv.bias.detach().numpy().copy()
    net = Forward(lambda net, x: net.conv(x), conv=conv)
    model = calibrate(net, batches, target='tidl', bits=dict(weight=2, activation=8))
    model.round_weights(batches)
    images = torch.cat([batch['inputs'] for batch in batches])
    expected = convolve(images.numpy(), reference[0]).mean((0, 2, 3)) + reference[1]
    correction = model.quantization.correction('net.conv')
    with torch.no_grad():
        means = F.conv2d(images, conv.weight, conv.bias + correction).mean((0, 2, 3))
    np.testing.assert_allclose(means.numpy(), expected, atol=0.02)
    assert correction.abs().max() > 0.02


def test_transposed_convolutions_are_left_and_named(monkeypatch):
    said = []
    monkeypatch.setattr(reconstruct, 'print_log', lambda text, *_: said.append(text))
    batches = batches_of(2, 4, 5, 5)
    net = Forward(lambda net, x: net.up(x), up=nn.ConvTranspose2d(4, 4, 2))
    model = calibrate(net, batches)
    before = net.up.weight.detach().clone()
    model.round_weights(batches)
    assert torch.equal(net.up.weight, before)
    assert said == ['Rounded to nearest stay net.up']


@pytest.mark.parametrize(
    'quantize, message',
    [
        (dict(rounding='adaround'), 'quantize.rounding is for a run that calibrates'),
        (dict(mode='ptq', rounding='up'), "quantize.rounding.method='up' is unknown"),
        (
            dict(mode='ptq', rounding=dict(method='adaround', iterations=0)),
            'quantize.rounding.iterations=0 is not a count',
        ),
        (
            dict(mode='ptq', rounding=dict(method='adaround', lr=-1)),
            'quantize.rounding.lr=-1',
        ),
    ],
)
def test_bad_values_are_refused(quantize, message):
    with pytest.raises(QuantizeError, match=message):
        QuantizeConfig.parse(quantize)

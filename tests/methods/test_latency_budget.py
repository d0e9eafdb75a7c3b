"""A latency budget: what calls cost by width, and what is raised within a time."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyNet, make_plan, randomize_norms

from mmquant_jacinto import (
    QuantizeConfig,
    QuantizeError,
    plan_model,
    quantize_model,
    unquantize_model,
)
from mmquant_jacinto.config.max_drop import Raised
from mmquant_jacinto.config.mixed_precision import MixedPrecision
from mmquant_jacinto.methods.budgets.latency_budget import latency_of, raise_within
from mmquant_jacinto.methods.operations import Cost, CountOperations

LATENCY = MixedPrecision(latency=1.5)
IMAGE = torch.zeros(1, 3, 16, 16)


def counted(net, image):
    plan = make_plan(net.eval(), image)
    quantization = quantize_model(net, plan)
    quantization.executor.behaviour = behaviour = CountOperations()
    with torch.no_grad():
        net(image)
    unquantize_model(net)
    return plan, behaviour.operations


def raised_plan(net, image, layers):
    config = QuantizeConfig(mode='ptq').with_raised(Raised(LATENCY, layers))
    return plan_model(net, [lambda: net(image)], config)


def chain(size=6):
    """Convolutions of 1x1, one behind the other, each twice as large as the last."""
    channels = [2 * 2**index for index in range(size + 1)]
    pairs = list(zip(channels, channels[1:]))
    layers = [nn.Conv2d(a, b, 1) for a, b in pairs]
    return nn.Sequential(*layers), torch.zeros(1, 2, 4, 4)


def test_multiply_accumulates_are_counted_by_layer():
    net = Forward(
        lambda net, x: net.up(net.grouped(net.conv(x))).mean((2, 3)) @ x[0, :, :2, 0],
        conv=nn.Conv2d(4, 6, 3, stride=2, padding=1),
        grouped=nn.Conv2d(6, 6, 3, groups=3, padding=1),
        up=nn.ConvTranspose2d(6, 4, 2, stride=2),
    )
    _, operations = counted(net, torch.zeros(1, 4, 8, 8))
    by_module = {name.rpartition('>')[2]: count for name, count in operations.items()}
    assert by_module['conv/conv2d'] == 4 * 4 * 6 * 4 * 9
    assert by_module['grouped/conv2d'] == 4 * 4 * 6 * 2 * 9
    assert by_module['up/conv_transpose2d'] == 8 * 8 * 6 * 4
    assert by_module['/matmul'] == 1 * 4 * 2


def test_a_layer_costs_the_product_of_its_widths_and_an_addition_its_own():
    net = Forward(lambda net, x: F.relu(net.conv(x) + x), conv=nn.Conv2d(3, 3, 1))
    plan, operations = counted(net, torch.zeros(1, 3, 4, 4))
    layer, addition = 16 * 9, 16 * 3
    assert Cost(plan, operations).total() == 64 * layer + 8 * addition
    wide = make_plan(net, torch.zeros(1, 3, 4, 4), bits=dict(weight=16, activation=8))
    assert Cost(wide, operations).total() == 128 * layer + 8 * addition


@pytest.mark.parametrize('latency', [1.05, 1.3, 2.0, 3.99])
def test_the_plan_with_what_is_raised_keeps_the_latency(latency):
    net = randomize_norms(ToyNet())
    plan, operations = counted(net, IMAGE)
    rng = random.Random(0)
    gains = {
        16: {
            name: {
                kind: rng.expovariate(1.0)
                for kind in ('weight', 'activation')
                if kind == 'activation' or step.weight
            }
            for name, step in plan.steps.items()
            if not step.follows and step.output
        }
    }
    layers = raise_within(plan, operations, gains, latency)
    found = raised_plan(net, IMAGE, layers)
    assert latency >= latency_of(found, plan, operations)
    assert layers and 1 <= latency_of(found, plan, operations)


def test_all_is_raised_where_time_allows_and_costs_four_times_as_much():
    net, image = chain()
    plan, operations = counted(net, image)
    gains = {
        16: {
            name: dict(weight=1.0, activation=1.0)
            for name, step in plan.steps.items()
            if step.weight
        }
    }
    gains[16].update({plan.activations[0].name: dict(activation=1.0)})
    layers = raise_within(plan, operations, gains, 4.0)
    found = raised_plan(net, image, layers)
    assert {spec.format.bits for spec in found.specs} == {16}
    assert latency_of(found, plan, operations) == pytest.approx(4.0)


@pytest.mark.parametrize('seed', range(4))
def test_nearly_the_best_weights_are_raised(seed):
    net, image = chain()
    plan, operations = counted(net, image)
    rng = random.Random(seed)
    names = [name for name, step in plan.steps.items() if step.weight]
    gains = {name: rng.expovariate(1.0) for name in names}
    layers = raise_within(
        plan, operations, {16: {n: dict(weight=g) for n, g in gains.items()}}, 1.4
    )
    room = 0.4 * sum(operations.values())
    fits = [
        chosen
        for count in range(len(names) + 1)
        for chosen in itertools.combinations(names, count)
        if sum(operations[name] for name in chosen) <= room
    ]
    best = max(sum(gains[name] for name in chosen) for chosen in fits)
    assert sum(gains[name] for name in layers) >= 0.75 * best


def test_a_wider_width_follows_where_the_first_is_not_enough():
    net, image = chain(2)
    plan = make_plan(net, image, bits=4, edge_bits=4)
    _, operations = counted(net, image)
    first, second = [name for name, step in plan.steps.items() if step.weight]
    gains = {
        8: {first: dict(weight=10.0), second: dict(weight=0.1)},
        16: {first: dict(weight=11.0), second: dict(weight=0.11)},
    }
    assert raise_within(plan, operations, gains, 1.5) == {first: dict(weight=8)}
    assert raise_within(plan, operations, gains, 2.2) == {first: dict(weight=16)}
    both = raise_within(plan, operations, gains, 10.0)
    assert both == {first: dict(weight=16), second: dict(weight=16)}


def test_what_gains_nothing_is_not_raised():
    net, image = chain(2)
    plan, operations = counted(net, image)
    first, second = [name for name, step in plan.steps.items() if step.weight]
    gains = {16: {first: dict(weight=0.0), second: dict(activation=1e-9)}}
    assert raise_within(plan, operations, gains, 4.0) == {second: dict(activation=16)}


@pytest.mark.parametrize(
    'value, words',
    [
        (dict(latency=1), ['latency=1', 'above 1']),
        (dict(latency=0.5), ['latency=0.5']),
        (dict(latency='2x'), ["latency='2x'", 'number']),
        (dict(latency=float('nan')), ['latency=nan']),
        (dict(latency=1.2, average_bits=5), ['average_bits and latency']),
        (dict(average_bits=5, kinds=('weight',)), ['kinds', 'latency']),
        (dict(latency=1.2, kinds='weight'), ["kinds='weight'", 'list']),
        (dict(latency=1.2, kinds=()), ['kinds=()']),
        (dict(latency=1.2, kinds=('weights',)), ["'weights'", 'weight']),
        (dict(latency=1.2, candidates=()), ['candidates=()', '(8, 16)']),
        (dict(latency=1.2, candidates=(8, 40)), ['candidates=40']),
    ],
)
def test_a_wrong_setting_is_named(value, words):
    with pytest.raises(QuantizeError) as caught:
        QuantizeConfig.parse(dict(mode='ptq', mixed_precision=value))
    for word in ('quantize.mixed_precision', *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'quantize, most',
    [
        (dict(bits=16), 16),
        (dict(target='tensorrt'), 8),
        (dict(mixed_precision=dict(latency=1.2, candidates=(4, 8))), 16),
    ],
)
def test_a_target_without_wider_integers_is_named_before_anything_runs(quantize, most):
    net = randomize_norms(ToyNet()).eval()
    given = dict(mode='ptq', mixed_precision=dict(latency=1.2))
    with pytest.raises(QuantizeError) as caught:
        make_plan(net, IMAGE, **{**given, **quantize})
    assert 'nothing to raise to' in str(caught.value)
    assert f'integers of up to {most}' in str(caught.value)


def test_training_is_told_to_calibrate_first():
    with pytest.raises(QuantizeError, match="calibrate with mode='ptq' first"):
        QuantizeConfig.parse(dict(mode='qat', mixed_precision=dict(latency=1.2)))

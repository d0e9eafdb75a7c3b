"""Which tensors may have channels of unlike scales, and which may not."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward

from mmquant_jacinto import QuantizeConfig
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.targets.rules.table import Rules
from mmquant_jacinto.wrappers.prepare import plan_model

Swish = pytest.importorskip('mmcv.cnn.bricks').Swish


def plan_of(net, *inputs, **quantize):
    config = QuantizeConfig.parse({'target': 'onnxruntime', **quantize})
    return plan_model(net.eval(), [lambda: net(*inputs)], config)


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def two(between, x, second=None, **quantize):
    """Scaled tensors of a model of two convolutions with something between them."""
    net = Forward(
        lambda net, x: net.b(between(net, net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=second or nn.Conv2d(4, 5, 1),
        swish=Swish(),
        conv=nn.Conv2d(4, 4, 1),
    )
    return plan_of(net, x, **quantize).scaled


DIRECT = {
    'nothing': lambda net, x: x,
    'relu': lambda net, x: F.relu(x),
    'relu6': lambda net, x: F.relu6(x),
    'relu6 in place': lambda net, x: F.relu6(x, inplace=True),
    'max pool': lambda net, x: F.max_pool2d(F.relu(x), 2),
    'padded': lambda net, x: F.pad(F.relu6(x), (1, 1, 1, 1)),
    'nearest': lambda net, x: F.interpolate(x, scale_factor=2),
}


@pytest.mark.parametrize('name', DIRECT)
def test_convolutions_around_it_take_the_factors(name, x):
    (found,) = two(DIRECT[name], x)
    assert (found.producer, found.consumers) == ('a', ('b',))
    assert (found.channels, found.dims, found.is_opened) == (4, 2, False)
    assert found.is_bounded == ('relu6' in name or name == 'padded')


SMOOTH = {
    'silu': lambda net, x: F.silu(x),
    'silu in place': lambda net, x: F.silu(x, inplace=True),
    'swish': lambda net, x: net.swish(x),
    'gate in front': lambda net, x: x.sigmoid() * x,
    'hardswish': lambda net, x: F.hardswish(x),
    'x * hardsigmoid(x)': lambda net, x: x * F.hardsigmoid(x),
    'padded': lambda net, x: F.pad(F.silu(x), (1, 1, 1, 1)),
}


@pytest.mark.parametrize('name', SMOOTH)
def test_smooth_activation_in_between_has_it_on_both_sides(name, x):
    front, behind = two(SMOOTH[name], x)
    assert (front.producer, front.consumers) == ('a', ())
    assert (behind.producer, behind.consumers) == (None, ('b',))
    assert front.quantizer != behind.quantizer
    assert front.is_opened and behind.is_opened and not front.is_bounded


def test_in_front_it_does_not_matter_what_reads_the_function(x):
    net = Forward(
        lambda net, x: (lambda y: y + net.b(y))(F.silu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    (found,) = plan_of(net, x).scaled
    assert (found.producer, found.consumers) == ('a', ())


@pytest.mark.parametrize('target, opens', [('openvino', True), ('tidl', False)])
@pytest.mark.parametrize('name', SMOOTH)
def test_open_results_have_it_behind_alone(name, target, opens, x):
    *front, behind = two(SMOOTH[name], x, target=target)
    assert (behind.producer, behind.consumers) == (None, ('b',))
    assert [item.producer for item in front] == ([] if opens else ['a'])


GATED = {
    'a sum': lambda net, x: F.gelu(x) + net.conv(x),
    'squeezed': lambda net, x: F.gelu(x) * x.mean((2, 3), keepdim=True).sigmoid(),
    'gelu': lambda net, x: F.gelu(x),
}


@pytest.mark.parametrize('target, divides', [('openvino', True), ('tidl', False)])
@pytest.mark.parametrize('name', GATED)
def test_what_is_computed_is_divided_where_it_is_quantized(name, target, divides, x):
    found = [
        item for item in two(GATED[name], x, target=target) if 'b' in item.consumers
    ]
    assert [item.producer for item in found] == [None] * divides


@pytest.mark.parametrize('name', SMOOTH)
def test_engines_that_lack_it_have_one_scale_behind_open_results(name, x, monkeypatch):
    monkeypatch.setattr(Rules, 'divides_channels', False)
    assert two(SMOOTH[name], x, target='openvino') == ()
    assert two(DIRECT['relu'], x, target='openvino') != ()


NOT = {
    'tanh': lambda net, x: x.tanh(),
    'sigmoid alone': lambda net, x: x.sigmoid(),
    'added to': lambda net, x: x + 1.5 * x.mean(1, keepdim=True),
    'residual': lambda net, x: x + net.conv(x),
    'averaged': lambda net, x: F.avg_pool2d(x, 2),
    'bilinear': lambda net, x: F.interpolate(x, scale_factor=2, mode='bilinear'),
    'concatenated': lambda net, x: torch.cat([x[:, :2], net.conv(x)[:, :2]], 1),
    'transposed': lambda net, x: x.transpose(2, 3),
    'gate of another': lambda net, x: x * net.conv(x).sigmoid(),
    'gate read twice': lambda net, x: x * x.sigmoid() + x.sigmoid(),
    'channels padded': lambda net, x: F.pad(x[:, :3], (0, 0, 0, 0, 0, 1)),
}


@pytest.mark.parametrize('name', NOT)
def test_others_have_one_scale(name, x):
    found = two(NOT[name], x)
    assert not any('a' == item.producer for item in found)


def test_all_that_read_it_take_the_factors(x):
    net = Forward(
        lambda net, x: (lambda y: (net.b(y), net.c(y)))(F.silu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 3, groups=4),
        c=nn.Conv2d(4, 6, 1, groups=2),
    )
    _, found = plan_of(net, x).scaled
    assert found.consumers == ('b', 'c')


def test_shared_layers_keep_one_scale(x):
    net = Forward(
        lambda net, x: (net.b(F.relu(net.a(x))), net.b(F.relu(net.a(x[..., ::2])))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    assert plan_of(net, x).scaled == ()


def test_what_leaves_keeps_one_scale(x):
    net = Forward(
        lambda net, x: (lambda y: (y, net.b(y)))(F.relu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    assert plan_of(net, x).scaled == ()


def test_layers_in_float_take_none(x):
    between = DIRECT['relu']
    assert two(between, x, overrides={'b': False}) == ()
    assert two(between, x, overrides={'a': False}) == ()


def test_clamps_keep_one_scale_on_fine_grids(x):
    assert two(DIRECT['relu6'], x, bits=16) == ()
    assert two(DIRECT['relu'], x, bits=16) != ()


def test_methods_that_know_one_scale_alone_switch_it_off(x):
    assert two(DIRECT['relu'], x, scale_channels=False) == ()
    assert two(DIRECT['relu'], x, mode='ptq', rounding='adaround') == ()


def test_plan_comes_back_from_json(x):
    net = Forward(
        lambda net, x: net.b(F.silu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    plan = plan_of(net, x)
    again = Plan.from_json(plan.to_json())
    assert plan.scaled and again == plan and again.to_json() == plan.to_json()
    # What earlier versions do not know, they refuse.
    assert json.loads(plan.to_json())['version'] == 3
    assert json.loads(plan_of(net, x, scale_channels=False).to_json())['version'] == 1


def test_state_without_factors_is_taken(x):
    net = Forward(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    new, old = plan_of(net, x), plan_of(net, x, scale_channels=False)
    assert new.takes_state_of(old) and not old.takes_state_of(new)

"""Between which layers channels can be rescaled, and between which not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, inverted

from mmquant_jacinto import QuantizeConfig, QuantizeError
from mmquant_jacinto.wrappers.prepare import plan_model


def pairs_of(net, *inputs):
    config = QuantizeConfig(equalize=True)
    try:
        return plan_model(net.eval(), [lambda: net(*inputs)], config).pairs
    except QuantizeError as error:
        assert 'equalize' in str(error)
        return ()


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def two(between, x, second=None, **modules):
    """Pairs of a model of two layers with a function between them."""
    net = Forward(
        lambda net, x: net.b(between(net, net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=second or nn.Conv2d(4, 4, 1),
        **modules,
    )
    return pairs_of(net, x)


def test_depthwise_layer_is_second_of_one_pair_and_first_of_the_next(x):
    assert pairs_of(inverted(), x) == (('stem', 'depth'), ('depth', 'project'))


EQUIVARIANT = {
    'nothing': lambda net, x: x,
    'relu': lambda net, x: F.relu(x),
    'clamp': lambda net, x: x.clamp(min=0),
    'leaky': lambda net, x: F.leaky_relu(x),
    'max pool': lambda net, x: F.max_pool2d(F.relu(x), 2),
    'average': lambda net, x: F.adaptive_avg_pool2d(x, 2),
    'resized': lambda net, x: F.interpolate(x, scale_factor=2, mode='bilinear'),
    'dropout': lambda net, x: F.dropout(x),
}


@pytest.mark.parametrize('name', EQUIVARIANT)
def test_scale_passes(name, x):
    assert two(EQUIVARIANT[name], x) == (('a', 'b'),)


NOT_EQUIVARIANT = {
    'relu6': lambda net, x: F.relu6(x),
    'clamp above': lambda net, x: x.clamp(0, 100),
    'clamp elsewhere': lambda net, x: x.clamp(min=-1),
    'sigmoid': lambda net, x: x.sigmoid(),
    'silu': lambda net, x: F.silu(x),
    'addition': lambda net, x: x + 1,
    'padding with a number': lambda net, x: F.pad(x, (1, 1), value=2.0),
    'channels mixed': lambda net, x: x.flip(1),
    'channels shuffled': lambda net, x: F.channel_shuffle(x, 2),
    'read twice': lambda net, x: F.relu(x) + F.max_pool2d(x, 3, 1, 1),
    'multiplied by itself': lambda net, x: x * x,
    'normalized': lambda net, x: F.group_norm(x, 2),
    'unknown function': lambda net, x: torch.special.expit(x),
    'space to channels': lambda net, x: F.pixel_unshuffle(x, 2)[:, :4],
    'other axes': lambda net, x: x.transpose(1, 2)[:, :4],
}


@pytest.mark.parametrize('name', NOT_EQUIVARIANT)
def test_scale_does_not_pass(name, x):
    assert two(NOT_EQUIVARIANT[name], x) == ()


def test_value_that_leaves_the_region_is_nobodys_to_rescale(x):
    net = Forward(
        lambda net, x: (lambda y: (y, net.b(y)))(F.relu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    assert pairs_of(net, x) == ()


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x + 1


def test_what_an_autograd_function_reads_is_left_alone(x):
    def forward(net, x):
        y = F.relu(net.a(x))
        return net.b(y) + Opaque.apply(y)

    net = Forward(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1))
    assert pairs_of(net, x) == ()


def test_dynamic_weight_is_not_rescaled(x):
    def forward(net, x):
        kernel = net.a(x)[:1]
        return net.b(kernel), F.conv2d(x[:, :1], kernel.transpose(0, 1)[:, :1])

    net = Forward(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1))
    assert pairs_of(net, x) == ()


def test_classifier_behind_pooling_is_a_pair_and_behind_a_map_is_not(x):
    for size, expected in ((1, (('a', 'fc'),)), (2, ())):
        net = Forward(
            lambda net, x, size=size: net.fc(
                F.adaptive_avg_pool2d(F.relu(net.a(x)), size).flatten(1)
            ),
            a=nn.Conv2d(3, 4, 3),
            fc=nn.Linear(4 * size * size, 5),
        )
        assert pairs_of(net, x) == expected


def test_linear_layers_are_pairs_on_any_number_of_axes():
    net = Forward(
        lambda net, x: net.b(F.relu(net.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)
    )
    assert pairs_of(net, torch.randn(2, 5, 3)) == (('a', 'b'),)


def test_head_shared_by_levels_is_one_pair(x):
    net = Forward(
        lambda net, x: [net.b(F.relu(net.a(y))) for y in (x, x[:, :, ::2])],
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    )
    assert pairs_of(net, x) == (('a', 'b'),)


SHARED = {
    'first has another reader': lambda net, x: (net.b(net.a(x)), net.c(net.a(x))),
    'second has another source': lambda net, x: (net.b(net.a(x)), net.b(net.d(x))),
    'second reads an input too': lambda net, x: (net.b(net.a(x)), net.b(x[:, [0] * 4])),
    'norm has another layer': lambda net, x: (
        net.b(net.norm(net.a(x))),
        net.norm(net.d(x)),
    ),
    'weight is read by a function': lambda net, x: (
        net.b(net.a(x)) / net.b.weight.norm()
    ),
    'bias is read by a function': lambda net, x: net.b(net.a(x)) + net.a.bias.sum(),
    'bias has another layer': lambda net, x: (
        net.b(F.conv2d(x, net.a.weight, net.d.bias)),
        net.d(x),
    ),
}


@pytest.mark.parametrize('name', SHARED)
def test_what_something_else_uses_is_not_rescaled(name, x):
    net = Forward(
        SHARED[name],
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
        c=nn.Conv2d(4, 4, 1),
        d=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    assert pairs_of(net, x) == ()


def test_norm_without_parameters_cannot_take_a_scale(x):
    norm = nn.BatchNorm2d(4, affine=False)
    assert two(lambda net, y: net.norm(y), x, norm=norm) == ()
    norm = nn.BatchNorm2d(4)
    assert two(lambda net, y: net.norm(y), x, norm=norm) == (('a', 'b'),)


def test_layer_in_float_is_left_alone(x):
    net = inverted()
    config = QuantizeConfig(equalize=True, overrides={'project': False})
    plan = plan_model(net, [lambda: net(x)], config)
    assert plan.pairs == (('stem', 'depth'),)

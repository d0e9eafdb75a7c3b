"""Where a grid in front of a smooth function needs no steps."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward

from mmquant_jacinto import QuantizeConfig
from mmquant_jacinto.plan.flat_ends import flat_ends
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.wrappers.prepare import plan_model

Swish = pytest.importorskip('mmcv.cnn.bricks').Swish
modulated_deform_conv2d = pytest.importorskip('mmcv.ops').modulated_deform_conv2d

FUNCTIONS = {
    'sigmoid': torch.sigmoid,
    'tanh': torch.tanh,
    'silu': F.silu,
    'mish': F.mish,
    'gelu': F.gelu,
    'hardsigmoid': F.hardsigmoid,
    'hardswish': F.hardswish,
}


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_beyond_the_ends_a_function_moves_by_less_than_a_step(name, bits):
    low, high = flat_ends(name, bits)
    function, step = FUNCTIONS[name], 2.0**-bits
    # Of what is not bounded the grid behind reaches as far as the one in front.
    reach = 1.0 if high is not None else max(1.0, math.log(2) * (bits + 1))
    for end in (low, high):
        if end is None:
            continue
        beyond = end + torch.linspace(0, math.copysign(50, end), 1000).double()
        moved = (function(beyond) - function(torch.tensor(end).double())).abs().max()
        assert moved <= 1.01 * reach * step


def test_others_are_flat_nowhere():
    assert flat_ends('relu', 8) is None
    assert flat_ends('exp', 8) is None


def ends_of(function, bits=8, **modules):
    net = Forward(
        lambda net, x: net.b(function(net, net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
        swish=Swish(),
        **modules,
    )
    config = QuantizeConfig(target='onnxruntime', bits=bits, edge_bits=4)
    x = torch.randn(1, 3, 8, 8)
    plan = plan_model(net.eval(), [lambda: net(x)], config)
    again = Plan.from_json(plan.to_json())
    assert [s.ends for s in again.activations] == [s.ends for s in plan.activations]
    return {spec.name: spec.ends for spec in plan.activations}['a/conv2d']


@pytest.mark.parametrize('bits', [4, 8, 16])
def test_both_spellings_of_silu_have_the_same_end(bits):
    silu = flat_ends('silu', bits)
    assert ends_of(lambda net, x: F.silu(x), bits) == silu
    assert ends_of(lambda net, x: net.swish(x), bits) == silu
    assert ends_of(lambda net, x: x.sigmoid() * x, bits) == silu
    assert ends_of(lambda net, x: x * F.hardsigmoid(x), bits) == (-3.0, None)


def test_ends_are_those_of_all_readers():
    assert ends_of(lambda net, x: F.silu(x) + F.hardswish(x)) == flat_ends('silu', 8)
    assert ends_of(lambda net, x: x.sigmoid() + x.tanh()) == flat_ends('sigmoid', 8)
    assert ends_of(lambda net, x: F.silu(x) + x) is None
    assert ends_of(lambda net, x: x * x.sigmoid() + x) is None
    assert ends_of(lambda net, x: F.relu(x)) is None


def test_a_logarithm_behind_it_needs_the_ends():
    assert ends_of(lambda net, x: x.sigmoid().log()) is None


def test_parts_may_be_positions_of_a_deformable_convolution():
    class Offsets(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Conv2d(4, 27, 3, padding=1)
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x):
            both = self.both(x)
            mask = both[:, 18:].sigmoid()
            return modulated_deform_conv2d(
                x, both[:, :18].contiguous(), mask, self.weight, None, 1, 1
            )

    net = Forward(
        lambda net, x: net.b(net.deform(net.a(x))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        deform=Offsets(),
        b=nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(1, 3, 8, 8)
    config = QuantizeConfig(target='onnxruntime')
    plan = plan_model(net.eval(), [lambda: net(x)], config)
    assert {spec.name: spec.ends for spec in plan.activations}[
        'deform.both/conv2d'
    ] is None

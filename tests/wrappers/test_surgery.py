"""Modules that are replaced before anything is quantized."""

import pytest
import torch
from torch import nn
from toy_models import Forward

from mmquant_jacinto import QuantizeConfig, QuantizeError, QuantTestModule
from mmquant_jacinto.wrappers.surgery import operate, replacements, summary


def spp(activation=nn.SiLU):
    """Poolings of an SPP, behind a layer and its activation."""
    torch.manual_seed(0)
    return Forward(
        lambda net, x: torch.cat(
            [x := net.act(net.conv(x)), *(pool(x) for pool in net.pools)], 1
        ),
        conv=nn.Conv2d(3, 4, 3),
        act=activation(),
        pools=nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (3, 5, 9, 13)),
    ).eval()


def test_poolings_in_a_row_are_one_exactly():
    net, x = spp(nn.ReLU), torch.randn(2, 3, 20, 17)
    expected = net(x)
    found = operate(net)
    assert [item.name for item in found] == ['pools.1', 'pools.2', 'pools.3']
    assert [len(item.new) for item in found] == [2, 4, 6]
    assert all(item.is_exact for item in found)
    assert torch.equal(net(x), expected)
    assert operate(net) == []


@pytest.mark.parametrize('activation', [nn.SiLU, nn.Hardswish, nn.Mish])
def test_smooth_functions_become_relu_and_names_stay(activation):
    net = spp(activation)
    names = list(net.state_dict())
    lines = summary(operate(net))
    assert f'1 x {activation.__name__} -> ReLU, another function: train it' in lines
    assert isinstance(net.act, nn.ReLU)
    assert list(net.state_dict()) == names


@pytest.mark.parametrize(
    'pool',
    [
        nn.MaxPool2d(5, 2, 2),
        nn.MaxPool2d(5, 1, 0),
        nn.MaxPool2d(4, 1, 2),
        nn.MaxPool2d((5, 3), 1, (2, 1)),
        nn.MaxPool2d(5, 1, 2, dilation=2),
        nn.MaxPool2d(3, 1, 1),
    ],
)
def test_other_poolings_stay(pool):
    assert replacements(nn.Sequential(pool)) == []


def test_wrapper_replaces_before_it_plans():
    x = torch.randn(1, 3, 20, 20)
    module = QuantTestModule(spp(), x, target='tidl', surgery=True)
    assert not any('silu' in name for name in module.plan.steps)
    assert sum('max_pool2d' in name for name in module.plan.steps) == 13
    assert not replacements(module.module)


def test_only_a_switch_will_do():
    with pytest.raises(QuantizeError, match='surgery'):
        QuantizeConfig.parse(dict(surgery='yes'))

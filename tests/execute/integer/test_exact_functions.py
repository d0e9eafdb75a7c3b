"""Softmax and normalizations of integers: accurate, and the same in any order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto.execute.integer.exact_functions import (
    EXACT_FUNCTIONS,
    is_exact,
    rounded_exp,
)
from mmquant_jacinto.record.attention import masked_softmax
from mmquant_jacinto.targets.grid import Grid

GRID = Grid(float(np.float32(0.0371)), -130, 125, 256, 'half_even')


def integers(*shape):
    return torch.randint(GRID.low, GRID.high + 1, shape).float()


@pytest.mark.parametrize('unit', np.float32([2.0, 0.3, 0.07, 0.02, 0.004, 1e-4]))
def test_rounded_exponentials_have_no_ties(unit):
    bits, offset = rounded_exp(float(unit), 256)
    assert 0.2 < offset < 0.8
    exponents = -np.arange(256, dtype=np.float32) * unit
    exact = np.floor(np.exp(exponents.astype(np.float64)) * 2.0**bits + offset)
    assert exact[0] == 2**bits
    # Whatever an engine's float32 exponential does in its last bits.
    for error in (-3e-7, -6e-8, 6e-8, 3e-7):
        values = (np.exp(exponents.astype(np.float64)) * (1 + error)).astype(np.float32)
        values[0] = 1.0
        rounded = np.floor(values * np.float32(2.0**bits) + np.float32(offset))
        np.testing.assert_array_equal(rounded, exact)


def test_softmax_of_integers_is_that_of_real_numbers():
    x = integers(5, 7, 60)
    for dim in (-1, 1):
        found = EXACT_FUNCTIONS['softmax'](x, GRID, dim)
        expected = (x.double() * GRID.scale).softmax(dim)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
        torch.testing.assert_close(
            EXACT_FUNCTIONS['softmax'](x * GRID.scale, None, dim).double(),
            expected,
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize('given', [GRID, None])
def test_masked_softmax(given):
    x = integers(4, 6, 30)
    mask = torch.zeros(6, 30).masked_fill(torch.rand(6, 30) < 0.4, -torch.inf)
    mask[2] = -torch.inf
    operand = x if given else x * GRID.scale
    found = EXACT_FUNCTIONS['masked_softmax'](operand, given, 0.25, mask, safe=True)
    expected = masked_softmax(x.double() * GRID.scale, 0.25, mask.double(), safe=True)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-4)
    assert not found[:, 2].any()


def test_normalizations_are_those_of_real_numbers():
    x = integers(3, 12, 5, 5)
    weight, bias = torch.rand(12) + 0.5, torch.randn(12)
    found = EXACT_FUNCTIONS['group_norm'](x, GRID, 4, weight, bias, 1e-3)
    real = x.double() * GRID.scale
    expected = F.group_norm(real, 4, weight.double(), bias.double(), 1e-3)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)

    weight, bias = torch.rand(5, 5) + 0.5, torch.randn(5, 5)
    found = EXACT_FUNCTIONS['layer_norm'](x, GRID, (5, 5), weight, bias, 1e-3)
    expected = F.layer_norm(real, (5, 5), weight.double(), bias.double(), 1e-3)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'name, given, args, kwargs, expected',
    [
        ('softmax', GRID, (-1,), {}, True),
        ('softmax', None, (), {'dim': 1}, True),
        ('softmax', GRID, (1,), {'_stacklevel': 5}, True),
        ('softmax', GRID, (), {}, False),
        ('softmax', GRID, (1, torch.float64), {}, False),
        ('softmax', GRID, (1,), {'dtype': torch.float64}, False),
        ('layer_norm', GRID, ((4,),), {}, True),
        ('layer_norm', None, ((4,),), {}, False),
        ('gelu', GRID, (), {}, False),
    ],
)
def test_which_calls_are_exact(name, given, args, kwargs, expected):
    assert is_exact(name, given, args, kwargs) is expected


MASK = torch.zeros(49, 49).masked_fill(torch.rand(49, 49) < 0.3, -torch.inf)
BETWEEN_LAYERS = {
    'softmax': lambda net, x: x.softmax(-1),
    'softmax of a module': lambda net, x: net.softmax(x),
    'softmax of another axis': lambda net, x: torch.softmax(x, dim=1),
    # It stays in float, and so does its sum with a constant.
    'softmax of a sum': lambda net, x: (x + torch.linspace(0, 3, 96)).softmax(-1),
    'layer norm': lambda net, x: net.norm(x),
    'layer norm of many': lambda net, x: net.wide_norm(x),
    'attention': lambda net, x: net.attention(x, x, x, attn_mask=MASK)[0],
    'attention without weights': lambda net, x: net.attention(
        x, x, x, need_weights=False
    )[0],
}


@pytest.mark.parametrize('preset', ['onnxruntime', 'jacinto'])
@pytest.mark.parametrize('name', BETWEEN_LAYERS)
def test_file_has_the_same_bits(name, preset):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx_ir')
    from mmquant_jacinto.export.exporter import export_onnx
    from mmquant_jacinto.export.session import Session

    net = Forward(
        lambda net, x: net.two(BETWEEN_LAYERS[name](net, net.one(x))),
        one=nn.Linear(96, 96),
        softmax=nn.Softmax(dim=-1),
        norm=nn.LayerNorm(96),
        wide_norm=nn.LayerNorm((49, 96)),
        attention=nn.MultiheadAttention(96, 4, batch_first=True),
        two=nn.Linear(96, 8),
    ).eval()
    with torch.no_grad():
        net.one.weight.mul_(3)
    shape = (2, 49, 96)
    x = torch.randn(shape) * 2
    calibrated(net, x, target=preset, bits=8)
    exported = export_onnx(net, x)
    y = torch.randn(shape) * 2
    with torch.no_grad():
        expected = net(y)
    (found,) = Session(exported.model)(y).values()
    assert expected.unique().numel() > 3
    assert torch.equal(found, expected)

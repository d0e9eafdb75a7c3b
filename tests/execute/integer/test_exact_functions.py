"""Softmax and normalizations of integers: accurate, and the same in any order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
        ('adaptive_avg_pool2d', GRID, (2,), {}, False),
        ('adaptive_avg_pool2d', GRID, ((3, 1),), {}, True),
        ('adaptive_avg_pool2d', GRID, (), {'output_size': (None, 3)}, True),
        ('adaptive_avg_pool2d', None, (3,), {}, False),
    ],
)
def test_which_calls_are_exact(name, given, args, kwargs, expected):
    assert is_exact(name, torch.ones(1, 2, 4, 4), given, args, kwargs) is expected

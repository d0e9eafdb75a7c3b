"""Operators of elements in a file: the integers of the model, for any input."""

import torch
import torch.nn.functional as F
from exactness import (
    Inputs,
    assert_exact,
    assert_operator_exact,
    each_kind,
    pairs,
    sixes,
    without_entry,
)
from exporting import export, results
from torch import nn
from toy_models import Forward

from mmquant_jacinto.export.operators import elementwise
from mmquant_jacinto.export.operators.table import TRANSLATIONS

OPERATORS = {
    'relu': lambda x: F.relu(x),
    'relu in place': lambda x: F.relu(x, inplace=True),
    'relu6': lambda x: F.relu6(x),
    'hardtanh': lambda x: F.hardtanh(x, -0.5, 0.7),
    'clamp': lambda x: x.clamp(-0.4, 0.9),
    'clip': lambda x: x.clip(-0.4),
    'clamp_min': lambda x: torch.clamp_min(x, -0.4),
    'clamp_max': lambda x: torch.clamp_max(x, 0.9),
    'sigmoid': lambda x: x.sigmoid(),
    'silu': lambda x: F.silu(x),
    'logsigmoid': lambda x: F.logsigmoid(x),
    'tanh': lambda x: x.tanh(),
    'hardsigmoid': lambda x: F.hardsigmoid(x),
    'hardswish': lambda x: F.hardswish(x),
    'leaky_relu': lambda x: F.leaky_relu(x, 0.1),
    'prelu': nn.PReLU(4, 0.2),
    'prelu one slope': nn.PReLU(1, 0.3),
    'elu': lambda x: F.elu(x, 0.7),
    'celu': lambda x: F.celu(x, 0.7),
    'selu': lambda x: F.selu(x),
    'softplus': lambda x: F.softplus(x),
    'softplus beta': lambda x: F.softplus(x, beta=2),
    'mish': lambda x: F.mish(x),
    'gelu': lambda x: F.gelu(x),
    'gelu tanh': lambda x: F.gelu(x, approximate='tanh'),
    'glu': lambda x: F.glu(x, 1),
    'softmin': lambda x: F.softmin(x, 1),
    'log_softmax': lambda x: x.log_softmax(1),
    'neg': lambda x: -x,
    'exp': lambda x: x.exp(),
    'log': lambda x: (x.abs() + 0.5).log(),
    'sqrt': lambda x: x.abs().sqrt(),
    'abs': lambda x: x.abs(),
    'reciprocal': lambda x: (x.abs() + 0.5).reciprocal(),
    'floor': lambda x: x.floor(),
    'ceil': lambda x: x.ceil(),
    'round': lambda x: x.round(),
    'sin': lambda x: x.sin(),
    'cos': lambda x: x.cos(),
    'erf': lambda x: x.erf(),
    'sign': lambda x: x.sign(),
    'logical_not': lambda x: torch.logical_not(x > 0.3) * x,
    'invert': lambda x: ~(x > 0.3) * x,
    'square': lambda x: x.square(),
    'rsqrt': lambda x: (x.abs() + 0.5).rsqrt(),
    'lerp': lambda x, y: torch.lerp(x, y, 0.3),
    'addcmul': lambda x, y: torch.addcmul(x, x, y, value=0.5),
    'where': lambda x, y: torch.where(x > 0.2, x, y),
    'masked_fill': lambda x: x.masked_fill(x > 0.2, 0.0),
    'mean': lambda x: x.mean((2, 3)),
    'mean of two': lambda x: pairs(x).mean((2, 3)),
    'mean of six': lambda x: sixes(x).mean((2, 3)),
    'mean channels': lambda x: x.mean(1, keepdim=True),
    'sum': lambda x: x.sum((2, 3)),
    'norm': lambda x: x.norm(dim=1),
    'norm of absolutes': lambda x: torch.norm(x, 1, dim=(2, 3), keepdim=True),
    'norm of all': lambda x: x * x.norm(),
    'norm as ScaleNorm has it': lambda x: x / x.norm(dim=2, keepdim=True).clamp(1e-5),
    'linalg_norm': lambda x: torch.linalg.norm(x, dim=-1),
    'linalg_vector_norm': lambda x: torch.linalg.vector_norm(x, dim=(1, 2)),
    'linalg_vector_norm inf': lambda x: torch.linalg.vector_norm(
        x, float('inf'), dim=1
    ),
    'any': lambda x: (x > 0.7).any(-1, keepdim=True) * x,
    'any of all': lambda x: (x > 0.7).any() * x,
    'all': lambda x: (x > -0.7).all(1, True) * x,
    'amax': lambda x: x.amax((2, 3)),
    'amin': lambda x: x.amin(1),
    'max': lambda x: x.max(1)[0],
    'max all': lambda x: x - x.max(),
    'min': lambda x: x.min(1)[0],
    'min of two': lambda x, y: torch.min(x, y),
    'var': lambda x: x.var((2, 3)),
    'var of all': lambda x: x + x.var(1, unbiased=False).unsqueeze(1) + x.var(True),
    'std': lambda x: x.std((2, 3)),
    'std of maps': lambda x: x * x.std((2, 3), keepdim=True),
    'scaled_dot_product_attention': lambda x, y: F.scaled_dot_product_attention(
        x, y, x
    ),
    'abs as absolute': lambda x: x.absolute(),
    'neg as negative': lambda x: torch.negative(x),
    'sigmoid as expit': lambda x: torch.special.expit(x),
    # The image says what is hidden, here from everybody.
    'additive_mask': lambda x, y: F.scaled_dot_product_attention(x, y, x, x > 0.2),
    'additive_mask of numbers': lambda x, y: F.scaled_dot_product_attention(
        x, y, x, torch.where(y > 0.6, 0.0, -torch.inf)
    ),
    'scaled_dot_product_attention mask': lambda x, y: F.scaled_dot_product_attention(
        x, y, x, torch.zeros(8, 8).masked_fill(torch.eye(8) > 0, -torch.inf)
    ),
}
INEXACT = {
    # Where torch vectorizes it, it rounds once; no engine has such a node.
    ('lerp', 'ties'),
    # torch has no largest element of none.
    ('max all', 'empty'),
    ('var of all', 'empty'),
}


@each_kind(OPERATORS, but=INEXACT)
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name], kind)


def test_every_operator_has_an_entry():
    # On grids of 8 bits these are exact operators, see test_exact.
    found = [*OPERATORS, 'softmax', 'masked_softmax', 'merged_masks']
    assert without_entry(TRANSLATIONS, elementwise, found) == []


def test_random_additions_equal_the_kernel_bit_by_bit():
    # Ties are rare: many pairs of scales.
    for seed in range(8):
        torch.manual_seed(seed)
        net = Forward(
            lambda net, x: net.one(x) + net.two(x),
            one=nn.Conv2d(3, 16, 1),
            two=nn.Conv2d(3, 16, 1),
        )
        x = torch.randn(1, 3, 64, 64)
        assert_exact(net, Inputs(x, x), observer='percentile')


def test_a_root_of_sigmoids_behind_all_grids_is_that_of_the_engine():
    # TOOD's scores; of many elements, which PyTorch computes by other code.
    net = Forward(
        lambda net, x: (net.one(x).sigmoid() * net.two(x).sigmoid()).sqrt(),
        one=nn.Conv2d(3, 16, 1),
        two=nn.Conv2d(3, 16, 1),
    )
    x = torch.randn(1, 3, 64, 64)
    expected, found = results(net, export(net, x), torch.randn(1, 3, 64, 64))
    assert torch.equal(expected, found)

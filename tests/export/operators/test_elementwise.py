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
    'mul swish': lambda x: x * x.sigmoid(),
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
    'add': lambda x, y: x + y,
    'add alpha': lambda x, y: torch.add(x, y, alpha=2),
    'add number': lambda x: x + 0.7,
    'add in place': lambda x, y: x.add_(y),
    'sub': lambda x, y: x - y,
    'mul': lambda x, y: x * y,
    'mul gate': lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    'mul number': lambda x: x * 1.7,
    'div': lambda x, y: torch.div(x, y.abs() + 0.5),
    'div operator': lambda x, y: x / (y.abs() + 0.5),
    'truediv': lambda x: 2.0 / (x.abs() + 0.5),
    'maximum': lambda x, y: torch.maximum(x, y),
    'minimum': lambda x, y: torch.minimum(x, y),
    'lt': lambda x, y: (x < y) * x,
    'gt': lambda x, y: (x > y) * x,
    'le': lambda x, y: (x <= y) * x,
    'ge': lambda x, y: (x >= y) * x,
    'eq': lambda x, y: (x == y) * x,
    'logical_and': lambda x, y: torch.logical_and(x > 0, y > 0) * x,
    'logical_or': lambda x, y: torch.logical_or(x > 0, y > 0) * x,
    'and': lambda x, y: ((x > 0) & (y > 0)) * x,
    'bitwise_and': lambda x, y: torch.bitwise_and(x > 0, y > 0) * x,
    'or': lambda x, y: ((x > 0) | (y > 0)) * x,
    'bitwise_or': lambda x, y: torch.bitwise_or(x > 0, y > 0) * x,
    'sub turned': lambda x: x - x.flip(3),
    'rsub': lambda x: 1.0 - x,
    'square': lambda x: x.square(),
    'pow': lambda x: x.pow(2),
    'pow of 3': lambda x: x.pow(3),
    'pow of a number': lambda x: 1.3**x,
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
    found = [*OPERATORS, 'softmax', 'masked_softmax']
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

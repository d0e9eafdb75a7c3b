"""Arithmetic and comparisons in a file: the integers of the model, for any input."""

import torch
import torch.nn.functional as F
from exactness import assert_operator_exact, each_kind, without_entry

from mmquant_jacinto.export.operators import arithmetic
from mmquant_jacinto.export.operators.table import TRANSLATIONS

OPERATORS = {
    'mul swish': lambda x: x * x.sigmoid(),
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
    'maximum': lambda x, y: torch.maximum(x, y),
    'minimum': lambda x, y: torch.minimum(x, y),
    'lt': lambda x, y: (x < y) * x,
    'gt': lambda x, y: (x > y) * x,
    'le': lambda x, y: (x <= y) * x,
    'ge': lambda x, y: (x >= y) * x,
    'eq': lambda x, y: (x == y) * x,
    'ne': lambda x, y: (x != y) * x,
    'ne numbers': lambda x: ((x > 0).sum(-1, keepdim=True) != 3) * x,
    'not_equal': lambda x, y: torch.not_equal(x, y) * x,
    'less': lambda x, y: torch.less(x, y) * x,
    'greater': lambda x, y: torch.greater(x, y) * x,
    'less_equal': lambda x, y: torch.less_equal(x, y) * x,
    'greater_equal': lambda x, y: torch.greater_equal(x, y) * x,
    'logical_xor': lambda x, y: torch.logical_xor(x > 0, y > 0) * x,
    'logical_and': lambda x, y: torch.logical_and(x > 0, y > 0) * x,
    'logical_or': lambda x, y: torch.logical_or(x > 0, y > 0) * x,
    'and': lambda x, y: ((x > 0) & (y > 0)) * x,
    'bitwise_and': lambda x, y: torch.bitwise_and(x > 0, y > 0) * x,
    'or': lambda x, y: ((x > 0) | (y > 0)) * x,
    'bitwise_or': lambda x, y: torch.bitwise_or(x > 0, y > 0) * x,
    'sub turned': lambda x: x - x.flip(3),
    'rsub': lambda x: 1.0 - x,
    'pow': lambda x: x.pow(2),
    'pow of 3': lambda x: x.pow(3),
    'truediv': lambda x: x.__itruediv__(1.7),
    'rdiv': lambda x: 2.0 / (x.abs() + 0.5),
    'rdiv one': lambda x: 1 / (x.abs() + 0.5),
    'rpow': lambda x: 1.3**x,
    'rpow function': lambda x: torch.pow(1.3, x),
    'pow root': lambda x: (x.abs() + 0.5) ** 0.5,
    'div floor': lambda x: x.div(0.1, rounding_mode='floor'),
    'div trunc': lambda x: x.div(0.1, rounding_mode='trunc'),
    'div keyword': lambda x, y: torch.div(input=x, other=y.abs() + 0.5),
    'add out': lambda x, y: torch.add(x, y, out=torch.empty_like(x)),
    'div as true_divide': lambda x, y: torch.true_divide(x, y.abs() + 0.5),
    'div as divide': lambda x: torch.divide(x, 0.3),
    'mul as multiply': lambda x, y: torch.multiply(x, y),
    'sub as subtract': lambda x, y: x.subtract(y),
    'floordiv': lambda x: x // 0.3,
    'floor_divide': lambda x, y: torch.floor_divide(x, y.abs() + 0.5),
    'rfloordiv': lambda x: 1 // (x.abs() + 0.3),
    'mod': lambda x: x % 0.3,
    'remainder': lambda x, y: torch.remainder(x, -0.5 - y.abs()),
    'rmod': lambda x: 1 % (x.abs() + 0.3),
}


@each_kind(OPERATORS)
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name], kind)


def test_every_operator_has_an_entry():
    assert without_entry(TRANSLATIONS, arithmetic, OPERATORS) == []

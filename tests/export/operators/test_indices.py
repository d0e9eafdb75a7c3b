"""Operators that write to a part of a tensor: the integers of the model, in place."""

import torch
from exactness import assert_operator_exact, each_kind, without_entry

from mmquant_jacinto.export.operators import indices
from mmquant_jacinto.export.operators.table import TRANSLATIONS


def written(x, index, value):
    x = x * 1.5
    x[index] = value
    return x


def cold(x):
    return x.mean((2, 3)) < 0.4


OPERATORS = {
    'setitem': lambda x: written(x, (Ellipsis, slice(2, 5)), x[..., :3] + 1),
    'setitem block': lambda x: written(x, (slice(None), slice(1, 3), -2), x[:, :2, 0]),
    'setitem whole': lambda x: written(x, slice(None), x.flip(1)),
    'setitem number': lambda x: written(x, (slice(None), 1), 2.5),
    'setitem mask': lambda x: written(x, x > 0.5, torch.tensor(1)),
    'setitem listed': lambda x: written(x, (slice(None), [2, 0, -1]), x[:, :3] + 1),
    'setitem listed number': lambda x: written(x, (Ellipsis, [0, 2]), 0.5),
    'setitem nothing': lambda x: written(x, (slice(None), slice(5, 2)), 3.0),
    'setitem places': lambda x: written(x, torch.where(cold(x)), 0.25),
    'setitem no place': lambda x: written(x, torch.where(x > 1e9), 0.25),
    'setitem most places': lambda x: written(x, torch.where(x > -0.3), -0.5),
}


@each_kind(OPERATORS, but=())
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name], kind)


def test_every_operator_has_an_entry():
    assert without_entry(TRANSLATIONS, indices, OPERATORS) == []

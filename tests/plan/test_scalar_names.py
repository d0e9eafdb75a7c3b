"""Names of ranges that every visualizer backend takes."""

import posixpath
import re

import pytest
from torch import nn
from toy_models import calibrated

from mmquant_jacinto.plan.scalar_names import scalar_names

# What MLflow asks for, and that paths are in their normal form.
VALID = re.compile(r'[A-Za-z0-9_./-]{1,240}')


def is_valid(name):
    return VALID.fullmatch(name) and posixpath.normpath(name) == name != '..'


NAMES = ['backbone/input', 'a#1/conv2d', 'a>b#2.c/add', 'a_1/conv2d', 'a/conv2d:0']
ODD = ['', '/', '//relu', '../x', '.', 'é/x', 'a b', 'x' * 500, 'x' * 501, 'a@1/conv2d']


def test_names_are_valid_and_each_its_own():
    names = scalar_names([*NAMES, *ODD])
    assert all(map(is_valid, names))
    assert len(set(names)) == len(NAMES) + len(ODD)


def test_plain_names_stay():
    assert scalar_names(['backbone/input', 'head/linear']) == [
        'backbone/input',
        'head/linear',
    ]


class Shared(nn.Module):
    """Modules that run twice, and functions without a module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = self.body(x)
        return [self.head(x), self.head(nn.functional.max_pool2d(x, 2) + 1)]


def test_ranges_of_calls_have_valid_names(images):
    quantization = calibrated(Shared().eval(), images)
    names = list(quantization.activations.scalars())
    assert names
    assert all(map(is_valid, names))
    # Only what visualizers see is renamed.
    assert any('>' in spec.name or '#' in spec.name for spec in quantization.plan.specs)


@pytest.mark.parametrize('name', ['a>b', 'a#1', 'a.b#1/c'])
def test_order_decides_between_equal_names(name):
    plain = scalar_names([name])[0]
    assert scalar_names([name, plain]) == [plain, f'{plain}_2']

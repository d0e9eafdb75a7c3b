"""What is written through views, in files; and grids that no optimizer merges."""

import pytest
import torch
import torch.nn.functional as F
from exporting import export, export_onnx, results
from torch import nn
from toy_models import Forward


def between(function):
    return Forward(
        lambda net, x: net.two(function(net.one(x))),
        one=nn.Conv2d(3, 8, 1),
        two=nn.Conv2d(8, 4, 1),
    ).eval()


def through(x, write):
    write(x)
    return x


def assert_equal(net, **quantize):
    x = torch.randn(2, 3, 8, 8)
    exported = export(net, x, **quantize)
    expected, found = results(net, exported, torch.randn(2, 3, 8, 8))
    assert torch.equal(expected, found)
    return exported


def part_written(zeros, x):
    zeros[:, :4] = x[:, :4]
    return zeros


WRITES = {
    'channels': lambda x: through(x, lambda x: x[:, :2].mul_(2)),
    'activation of channels': lambda x: through(x, lambda x: x[:, 2:].relu_()),
    'one row': lambda x: through(x, lambda x: x[:, :, 1].add_(1)),
    'every other column': lambda x: through(x, lambda x: x[..., ::2].neg_()),
    'another shape': lambda x: through(x, lambda x: x.view(2, -1).add_(1)),
    'another order': lambda x: through(x, lambda x: x.transpose(1, 2).mul_(0.5)),
    'view of a view': lambda x: through(x, lambda x: x[:, :4][:, 1:].mul_(3)),
    'twice': lambda x: through(x, lambda x: (x[:, :4].mul_(3), x[:, 2:].add_(1))),
    'zeros': lambda x: x + part_written(x.new_zeros(x.shape), x),
    'view of zeros': lambda x: through(
        x.new_zeros(x.shape), lambda y: y[:, 1:5].add_(x[:, :4])
    ),
    'other view': lambda x: (lambda v: through(v, lambda v: x[:, :4].mul_(2)))(
        x.view(2, 8, 8, 8)
    ),
    'view of what is written': lambda x: (
        lambda v: torch.cat([through(x, lambda x: x.mul_(2))[:, 4:], v], 1)
    )(x[:, :4]),
    'read by keyword': lambda x: torch.add(
        input=through(x * 1.5, lambda x: x.add_(1)), other=x, alpha=2
    ),
    'out': lambda x: torch.mul(x, x, out=torch.empty_like(x)),
}


@pytest.mark.parametrize('name', WRITES)
def test_file_reads_what_is_written_through_a_view(name):
    assert_equal(between(WRITES[name]))


class Scale(nn.Module):
    """As in a detector's head: of one number, which starts at one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x * self.scale


NOTHING = {
    'scale': Scale(),
    'times one': lambda x: 1.0 * x,
    'plus zero': lambda x: x + 0,
    'minus zeros': lambda x: x - torch.zeros(1),
    'over one': lambda x: x / 1,
    'to the power of one': lambda x: x**1,
    'in several steps': lambda x: ((x * 1.0) + 0) / 1,
}


@pytest.mark.parametrize('name', NOTHING)
def test_step_that_does_nothing_separates_two_grids(name):
    net = between(lambda x: x)
    net.nothing = NOTHING[name] if name == 'scale' else nn.Identity()
    nothing = net.nothing if name == 'scale' else NOTHING[name]
    net.function = lambda net, x: net.two(nothing(net.one(x)))
    x = torch.randn(2, 3, 8, 8)
    export(net, x)
    # As a training leaves them: the two ranges move apart.
    quantization = net.quantization
    with torch.no_grad():
        for index in range(len(quantization.plan.activations)):
            quantization.activations.high[index] *= 0.7 + 0.1 * index
    quantization.set_phase('test')
    expected, found = results(net, export_onnx(net, x, 'onnxruntime'), x)
    assert torch.equal(expected, found)


@pytest.mark.parametrize('value', [0.37, 10.0, -3.0, float('-inf')])
def test_padding_of_any_value(value):
    def pad(x):
        x = F.pad(x.clamp(0, 6), (1, 1, 1, 1), value=value)
        return F.max_pool2d(x, 3, 2)

    assert_equal(between(pad))


QUOTIENTS = {
    'reflected': lambda x: 1 / (x.abs() + 0.5),
    'number': lambda x: 3 / (x.abs() + 0.5),
    'reflected power': lambda x: 2 ** x.clamp(-2, 2),
    'reflected difference': lambda x: 1 - x,
    'floor': lambda x: x.div(0.1, rounding_mode='floor'),
    'trunc': lambda x: x.div(0.1, rounding_mode='trunc'),
    'floor division': lambda x: x // 0.3,
    'reflected floor division': lambda x: 1 // (x.abs() + 0.3),
    'remainder': lambda x: x % 0.3,
    'reflected remainder': lambda x: 1 % (x.abs() + 0.3),
    'keyword': lambda x: torch.div(input=x, other=x.abs() + 1),
    'matrices': lambda x: x + x.mT,
    'data': lambda x: x + x.data,
}


@pytest.mark.parametrize('name', QUOTIENTS)
def test_file_computes_quotients_the_right_way_round(name):
    assert_equal(between(QUOTIENTS[name]))


@pytest.mark.parametrize('size', [4, 7, 10])
@pytest.mark.parametrize(
    'pool',
    [
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 2, 3, 1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=5),
        lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    ],
)
def test_last_windows_of_a_pooling(pool, size):
    x = torch.randn(2, 3, size, size + 1)
    net = between(pool)
    expected, found = results(net, export(net, x), torch.randn_like(x))
    assert expected.shape == found.shape
    assert torch.equal(expected, found)

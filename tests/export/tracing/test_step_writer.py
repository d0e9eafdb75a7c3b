"""Layers that are rarely met, in a file: weights, biases, sums and constants."""

import pytest
import torch
import torch.nn.functional as F
from exactness import Inputs, assert_exact, random_inputs
from torch import nn
from toy_models import Forward

onnx = pytest.importorskip('onnx')
from mmquant_jacinto import QuantizeError  # noqa: E402
from mmquant_jacinto.export.session import integer_layers, kernels  # noqa: E402


def test_large_bias_leaves_room_for_the_sum():
    net = Forward(
        lambda net, x: net.two(net.one(x)),
        one=nn.Conv2d(3, 4, 3),
        two=nn.Conv2d(4, 2, 1),
    )
    with torch.no_grad():
        # The bias takes all the bits of the accumulator that there are.
        net.one.weight.mul_(1e-9)
        net.one.bias.copy_(torch.tensor([-4.6, 4.6, 0.0, 1.0]))
    assert_exact(net, random_inputs(1, 3, 8, 8))


@pytest.mark.parametrize('bits', [4, 6])
def test_sums_that_layers_read_narrower(bits):
    def forward(net, x):
        x = net.one(x).relu()
        x = x + net.two(x)
        return net.four(x + net.three(x))

    layers = {name: nn.Conv2d(8, 8, 3, padding=1) for name in ('two', 'three', 'four')}
    net = Forward(forward, one=nn.Conv2d(3, 8, 3), **layers)
    widths = dict(weight=bits, activation=bits, sum=8)
    _, found = assert_exact(net, random_inputs(1, 3, 10, 10), bits=widths)
    assert len(found.unique()) > 4


OPERANDS = {
    'sum': lambda x, table: x + table,
    'sum that turns it': lambda x, table: table.expand(2, 9, 9).transpose(1, 2) + x,
    'product': lambda x, table: x * table,
    'matmul': lambda x, table: torch.matmul(table, x),
}


@pytest.mark.parametrize('name', OPERANDS)
def test_operands_that_no_image_changes_are_integers(name):
    net = Forward(
        lambda net, x: net.two(OPERANDS[name](net.one(x), net.one(net.table))),
        one=nn.Linear(9, 9, bias=False),
        two=nn.Linear(9, 4),
    )
    # With these ranges a step of a sum is two of its operands: half of all sums are
    # ties, which the kernel rounds with the zero point in, and that is odd.
    table = torch.linspace(-127 / 128, 1, 81).view(9, 9)
    net.table = nn.Parameter(table)
    with torch.no_grad():
        net.one.weight.copy_(torch.eye(9))
    inputs = Inputs(table.expand(2, 9, 9), torch.rand(2, 9, 9) * 2 - 1)
    exported, _ = assert_exact(net, inputs)
    integers, layers = integer_layers(exported.model)
    assert integers == layers >= 2
    assert not {'Add', 'Mul', 'MatMul'} & set(kernels(exported.model))


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias, padding=1)


@pytest.mark.parametrize('preset', ['onnxruntime', 'jacinto'])
@pytest.mark.parametrize('normalized', [False, True])
def test_weight_that_the_model_computes(preset, normalized):
    norm = nn.BatchNorm2d(8) if normalized else nn.Identity()
    if normalized:
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.weight)
        nn.init.zeros_(norm.weight[:1])
    net = Forward(
        lambda net, x: net.two(F.relu(net.norm(net.one(x)))),
        one=Standardized(3, 8, 3),
        norm=norm,
        two=nn.Conv2d(8, 4, 1),
    )
    exported, _ = assert_exact(net, random_inputs(1, 3, 10, 10), target=preset)
    stored = {item.name: item for item in exported.model.graph.initializer}
    assert stored['one/conv2d:weight:int'].data_type == onnx.TensorProto.INT8
    kinds = {node.op_type for node in exported.model.graph.node}
    # One scale for all channels is not the normalized weight's.
    in_float = normalized and preset == 'jacinto'
    assert ('BatchNormalization' in kinds) == in_float


@pytest.mark.parametrize(
    'function',
    [
        lambda net, x: net.two(x[0]),
        lambda net, x: F.max_pool2d(x[0], 2),
        lambda net, x: F.avg_pool2d(x[0], 3),
        lambda net, x: F.adaptive_avg_pool3d(x, 2),
    ],
)
def test_image_without_a_batch_is_refused(function):
    net = Forward(
        lambda net, x: function(net, net.one(x)),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    with pytest.raises(QuantizeError, match='an image without a batch'):
        assert_exact(net, random_inputs(1, 3, 8, 8))

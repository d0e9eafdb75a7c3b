"""Layers that are rarely met, exported: the file against the integer model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated

pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session, integer_layers, kernels  # noqa: E402


def compare(net, x, y, **quantize):
    """The file of a net calibrated on ``x``; outputs of both for ``y``."""
    calibrated(net.eval(), x, **{'target': 'onnxruntime', 'bits': 8, **quantize})
    exported = export_onnx(net, x)
    with torch.no_grad():
        expected = net(y)
    (found,) = Session(exported.model)(y).values()
    return exported, expected, found


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
    x = torch.randn(1, 3, 8, 8)
    _, expected, found = compare(net, x, torch.randn(1, 3, 8, 8))
    assert torch.equal(found, expected)


@pytest.mark.parametrize('bits', [4, 6])
def test_sums_that_layers_read_narrower(bits):
    def forward(net, x):
        x = net.one(x).relu()
        x = x + net.two(x)
        return net.four(x + net.three(x))

    layers = {name: nn.Conv2d(8, 8, 3, padding=1) for name in ('two', 'three', 'four')}
    net = Forward(forward, one=nn.Conv2d(3, 8, 3), **layers)
    x = torch.randn(1, 3, 10, 10)
    widths = dict(weight=bits, activation=bits, sum=8)
    exported, expected, found = compare(net, x, torch.randn(1, 3, 10, 10), bits=widths)
    assert torch.equal(found, expected)
    assert len(expected.unique()) > 4


def deformable(groups, modulated):
    ops = pytest.importorskip('mmcv.ops')
    kind = ops.ModulatedDeformConv2d if modulated else ops.DeformConv2d
    conv = kind(8, 8, 3, padding=1, groups=groups, deform_groups=2)
    offsets = nn.Conv2d(8, 2 * 2 * 9, 3, padding=1)
    masks = nn.Conv2d(8, 2 * 9, 3, padding=1)

    def forward(net, x):
        x = net.stem(x)
        more = (net.masks(x).sigmoid(),) if modulated else ()
        return net.last(net.conv(x, net.offsets(x), *more))

    return Forward(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        conv=conv,
        offsets=offsets,
        masks=masks,
        last=nn.Conv2d(8, 4, 1),
    )


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('groups', [1, 2])
def test_deformable_convolution(groups, modulated):
    net = deformable(groups, modulated)
    x = torch.randn(2, 3, 12, 12)
    exported, expected, found = compare(net, x, torch.randn(2, 3, 12, 12))
    assert torch.equal(expected, found)
    assert len(expected.unique()) > 16
    integers, layers = integer_layers(exported.model)
    assert integers == layers == 4 + modulated


def test_deformable_convolution_with_a_computed_weight_and_a_norm():
    ops = pytest.importorskip('mmcv.ops')

    def forward(net, x):
        weight = net.conv.weight - net.conv.weight.mean((1, 2, 3), keepdim=True)
        x = ops.deform_conv2d(x, net.offsets(x), weight, 1, 1)
        return net.last(F.relu(net.norm(x)))

    net = Forward(
        forward,
        conv=nn.Conv2d(3, 8, 3, bias=False),
        offsets=nn.Conv2d(3, 18, 3, padding=1),
        norm=nn.BatchNorm2d(8),
        last=nn.Conv2d(8, 4, 1),
    )
    nn.init.normal_(net.norm.running_mean)
    x = torch.randn(1, 3, 12, 12)
    exported, expected, found = compare(net, x, torch.randn(1, 3, 12, 12))
    assert torch.equal(expected, found)
    integers, layers = integer_layers(exported.model)
    assert integers == layers == 3


def test_offsets_of_a_finer_level():
    net = deformable(1, True)
    net.conv.stride = (2, 2)  # as in DyHead, whose offsets come from another level
    x = torch.randn(2, 3, 12, 12)
    _, expected, found = compare(net, x, torch.randn(2, 3, 12, 12))
    assert torch.equal(expected, found)


@pytest.mark.parametrize('bits', [8, 16])
def test_operators_that_newer_opsets_call_otherwise(bits):
    net = Forward(
        lambda net, x: net.two(F.glu(net.one(x), 1)).amax((2, 3)),
        one=nn.Conv2d(3, 8, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(1, 3, 10, 10)
    exported, expected, found = compare(net, x, torch.randn(1, 3, 10, 10), bits=bits)
    assert exported.model.opset_import[0].version == (21 if bits == 16 else 17)
    (scale,) = exported.scales.values()
    assert (expected - found).abs().max() <= 1.01 * scale


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
    x, y = table.expand(2, 9, 9), torch.rand(2, 9, 9) * 2 - 1
    exported, expected, found = compare(net, x, y, observer='minmax')
    assert torch.equal(found, expected)
    integers, layers = integer_layers(exported.model)
    assert integers == layers >= 2
    assert not {'Add', 'Mul', 'MatMul'} & set(kernels(exported.model))

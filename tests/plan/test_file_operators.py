"""What a plan is by a target's table of rules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, make_plan


def plan_of(forward, target, **modules):
    modules = {'conv': nn.Conv2d(3, 4, 3, padding=1), **modules}
    return make_plan(
        Forward(forward, **modules), torch.randn(1, 3, 8, 8), target=target
    )


def formats(plan):
    return {spec.name: spec.format for spec in plan.activations}


def test_tidl_has_zero_points_only_where_all_that_touches_a_tensor_takes_them():
    plan = plan_of(
        lambda net, x: net.head(F.max_pool2d(net.more(net.conv(x)), 2)),
        'tidl',
        more=nn.Conv2d(4, 4, 1),
        head=nn.Conv2d(4, 2, 1),
    )
    symmetric = {name: fmt.symmetric for name, fmt in formats(plan).items()}
    assert symmetric == {
        '/input': True,  # what enters the network
        'conv/conv2d': False,
        'more/conv2d': True,  # pooled
        'head/conv2d': True,  # and what leaves it
    }
    assert formats(plan)['more/conv2d'].unsigned_if_positive


@pytest.mark.parametrize(
    'function, symmetric',
    [
        (lambda x: F.interpolate(x, scale_factor=2), True),
        (lambda x: x.sigmoid(), True),
        (lambda x: F.silu(x), True),
        (lambda x: x[:, :2], True),
        (lambda x: x * x.mean((2, 3), keepdim=True), True),
        (lambda x: x + x.flip(3), True),  # no operator of the table
        (lambda x: torch.cat([x, x], 1), False),
        (lambda x: x.reshape(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8), False),
        (lambda x: x.softmax(-1), False),
        (lambda x: x + torch.nan_to_num(x), True),  # in float
        (lambda x: x + torch.zeros_like(x), False),
    ],
)
def test_operators_decide(function, symmetric):
    plan = plan_of(
        lambda net, x: net.head(function(net.conv(x))), 'tidl', head=nn.LazyConv2d(2, 1)
    )
    assert formats(plan)['conv/conv2d'].symmetric is symmetric


@pytest.mark.parametrize('target', ['tidl', 'openvino'])
def test_what_is_sampled_has_no_zero_point_in_tidl(target):
    mmcv_ops = pytest.importorskip('mmcv.ops')
    plan = plan_of(
        lambda net, x: net.more(net.deform(net.conv(x), net.offset(x))),
        target,
        offset=nn.Conv2d(3, 18, 3, padding=1),
        deform=mmcv_ops.DeformConv2d(4, 4, 3, padding=1),
        more=nn.Conv2d(4, 4, 1),
    )
    for name in ('conv/conv2d', 'offset/conv2d'):
        assert formats(plan)[name].symmetric is (target == 'tidl')
    # Samples that are multiplied by an ordinary convolution.
    assert plan.weights['deform'].format.per_channel


def test_weights_that_follow_from_others_are_signed_where_tidl_wants_it():
    plan = plan_of(
        lambda net, x: F.conv2d(y := net.conv(x), y.new_ones(2, 4, 1, 1)), 'tidl'
    )
    (weight,) = (fmt for name, fmt in formats(plan).items() if ':input1' in name)
    assert weight.symmetric
    assert not weight.unsigned_if_positive


@pytest.mark.parametrize('target', ['onnxruntime', 'openvino'])
def test_targets_without_such_rules_plan_affine(target):
    plan = plan_of(lambda net, x: F.max_pool2d(net.conv(x), 2), target)
    assert not any(fmt.symmetric for fmt in formats(plan).values())


@pytest.mark.parametrize(
    'target, per_channel',
    [('tidl', False), ('tensorrt', False), ('onnxruntime', True), ('openvino', True)],
)
def test_scales_of_deconvolutions_follow_the_table(target, per_channel):
    plan = plan_of(
        lambda net, x: net.up(net.conv(x)), target, up=nn.ConvTranspose2d(4, 4, 2, 2)
    )
    assert plan.weights['up'].format.per_channel is per_channel
    assert plan.weights['conv'].format.per_channel


SUM = dict(left=nn.Conv2d(4, 4, 1), right=nn.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    'forward, quantized',
    [
        (
            lambda net, x: net.left(net.conv(x)) + net.right(net.conv(x)),
            {'left/conv2d'},
        ),
        (lambda net, x: F.silu(net.left(net.conv(x))), set()),
        (lambda net, x: F.relu(net.left(net.conv(x))) + 1, {'left/conv2d'}),
        (lambda net, x: net.left(net.conv(x)) * 2, {'left/conv2d'}),
    ],
)
def test_tensorrt_has_no_grid_inside_what_it_fuses(forward, quantized):
    plan = plan_of(forward, 'tensorrt', **SUM)
    layers = {'left/conv2d', 'right/conv2d'}
    assert layers.intersection(formats(plan)) == quantized
    plan = plan_of(forward, 'onnxruntime', **SUM)
    assert quantized <= layers.intersection(formats(plan))


def test_result_that_others_read_too_keeps_its_grid():
    def forward(net, x):
        y = net.left(net.conv(x))
        return y + net.conv(x), net.right(y)

    assert 'left/conv2d' in formats(plan_of(forward, 'tensorrt', **SUM))

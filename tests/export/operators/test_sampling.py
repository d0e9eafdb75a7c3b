"""Values between pixels in a file: the integers of the model, for any input."""

import pytest
import torch
import torch.nn.functional as F
from exactness import (
    assert_exact,
    assert_operator_exact,
    each_kind,
    random_inputs,
    without_entry,
)
from torch import nn
from toy_models import Forward

from mmquant_jacinto.export.operators import sampling
from mmquant_jacinto.export.operators.exact import EXACT_OPERATORS
from mmquant_jacinto.export.session import integer_layers


def deformable(modulated, channels=4, deform_groups=1, **options):
    ops = pytest.importorskip('mmcv.ops')
    kind = ops.ModulatedDeformConv2d if modulated else ops.DeformConv2d
    taps = 9 * deform_groups

    def forward(net, x):
        more = (net.masks(x).sigmoid(),) if modulated else ()
        return net.conv(x, net.offsets(x), *more)

    return Forward(
        forward,
        conv=kind(channels, 8, 3, padding=1, deform_groups=deform_groups, **options),
        offsets=nn.Conv2d(channels, 2 * taps, 3, padding=1),
        masks=nn.Conv2d(channels, taps, 3, padding=1),
    )


def places(x):
    return x.permute(0, 2, 3, 1)[..., :2]


OPERATORS = {
    'grid_sample': lambda: (
        lambda x, y: F.grid_sample(x, places(y), align_corners=False)
    ),
    'grid_sample corners': lambda: (
        lambda x, y: F.grid_sample(x, places(y) * 0.7, align_corners=True)
    ),
    'deform_conv2d': lambda: deformable(False),
    'deform_conv2d modulated': lambda: deformable(True, deform_groups=2),
    'deform_conv2d groups': lambda: deformable(True, groups=2),
}


@each_kind(OPERATORS)
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name](), kind)


def test_every_operator_has_an_entry():
    assert without_entry(EXACT_OPERATORS, sampling, OPERATORS) == []


def stem_and_last(conv):
    return Forward(
        lambda net, x: net.last(net.conv(net.stem(x))),
        stem=nn.Conv2d(3, 8, 3),
        conv=conv,
        last=nn.Conv2d(8, 4, 1),
    )


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('groups', [1, 2])
def test_deformable_convolution_runs_in_integers(groups, modulated):
    net = stem_and_last(deformable(modulated, 8, 2, groups=groups))
    exported, found = assert_exact(net, random_inputs(2, 3, 12, 12))
    assert len(found.unique()) > 16
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
    exported, _ = assert_exact(net, random_inputs(1, 3, 12, 12))
    integers, layers = integer_layers(exported.model)
    assert integers == layers == 3


def test_offsets_of_a_finer_level():
    conv = deformable(True, 8, 2)
    conv.conv.stride = (2, 2)  # as in DyHead, whose offsets come from another level
    assert_exact(stem_and_last(conv), random_inputs(2, 3, 12, 12))


def test_constant_that_is_sampled_where_the_image_says():
    ramp = torch.linspace(-2, 2, 10).expand(1, 8, 10, 10)

    def forward(net, x):
        return net.two(
            F.grid_sample(ramp * 1.0, places(net.one(x)), align_corners=False)
        )

    net = Forward(forward, one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1))
    assert_exact(net, random_inputs(1, 3, 10, 10))


def test_spline_that_says_where_to_sample():
    knots, places = (
        torch.linspace(0, 1, n)[:, None] ** torch.arange(5) for n in (5, 64)
    )

    def forward(net, x):
        points = net.points(x.mean((2, 3))).reshape(-1, 5, 2)
        curve = torch.matmul(net.places, torch.matmul(net.inverse, points))
        grid = 2.0 * curve.clamp(0, 1).reshape(-1, 8, 8, 2) - 1.0
        return net.two(F.grid_sample(net.one(x), grid, align_corners=True))

    layers = dict(one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1))
    net = Forward(forward, points=nn.Linear(3, 10), **layers)
    net.register_buffer('places', places)
    net.register_buffer('inverse', torch.linalg.inv(knots))
    assert_exact(net, random_inputs(1, 3, 10, 10))

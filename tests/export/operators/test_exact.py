"""Exact operators in a file: the integers of the model, for any input."""

import pytest
import torch
import torch.nn.functional as F
from exactness import (
    Inputs,
    assert_exact,
    assert_operator_exact,
    each_kind,
    sixes,
    without_entry,
)
from torch import nn
from toy_models import Forward

from mmquant_jacinto.export.operators import exact
from mmquant_jacinto.export.operators.exact import EXACT_OPERATORS

MASK = torch.zeros(64, 64).masked_fill(
    torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.3, -torch.inf
)


def attention(**options):
    return Forward(
        lambda net, x: net.attention(*[x.flatten(2).transpose(1, 2)] * 3, **options)[0],
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    )


def masked(masks, **options):
    """Attention whose masks follow from the image: (N, 4, 64)."""
    return Forward(
        lambda net, x: net.attention(
            *[x.flatten(2).transpose(1, 2)] * 3, **masks(x.flatten(2))
        )[0],
        attention=nn.MultiheadAttention(4, 2, batch_first=True, **options),
    )


OPERATORS = {
    'softmax': lambda: lambda x: x.softmax(1),
    'softmax last': lambda: nn.Softmax(dim=-1),
    # It stays in float, and so does its sum with a constant.
    'softmax of a sum': lambda: lambda x: (x + torch.linspace(0, 3, 8)).softmax(-1),
    'masked_softmax': lambda: attention(attn_mask=MASK),
    'masked_softmax with a mask of the image': lambda: masked(
        lambda x: dict(attn_mask=x.sum(0)[:1].T > x.sum(0)[1], need_weights=False)
    ),
    'masked_softmax with a mask of the image for each head': lambda: masked(
        lambda x: dict(
            attn_mask=x.repeat_interleave(2, 0)[:, :1].mT > x[:1, 1:2],
            need_weights=False,
        )
    ),
    'masked_softmax with keys of the image': lambda: masked(
        lambda x: dict(key_padding_mask=x[:, 2] > 0.8, need_weights=False)
    ),
    'masked_softmax with both': lambda: masked(
        lambda x: dict(
            attn_mask=x.sum(0)[:1].T > x.sum(0)[1] + 0.4,
            key_padding_mask=x[:, 2] > 0.8,
            need_weights=False,
        ),
        add_zero_attn=True,
    ),
    'masked_softmax without a mask': lambda: attention(need_weights=False),
    'group_norm': lambda: nn.GroupNorm(2, 4),
    'group_norm plain': lambda: nn.GroupNorm(1, 4, affine=False),
    'layer_norm': lambda: nn.LayerNorm(8),
    'layer_norm of maps': lambda: nn.LayerNorm((8, 8)),
    'avg_pool2d': lambda: nn.AvgPool2d((3, 5), 2, 1),
    'avg_pool2d of six': lambda: lambda x: F.avg_pool2d(sixes(x), (2, 3)),
    'adaptive_avg_pool1d': lambda: lambda x: F.adaptive_avg_pool1d(x.flatten(2), 24),
    'adaptive_avg_pool2d': lambda: nn.AdaptiveAvgPool2d((3, 5)),
    'adaptive_avg_pool2d of rows': lambda: nn.AdaptiveAvgPool2d((None, 3)),
    'adaptive_avg_pool2d upwards': lambda: nn.AdaptiveAvgPool2d((10, 1)),
    'adaptive_avg_pool3d': lambda: lambda x: F.adaptive_avg_pool3d(x[:, None], 3),
    'interpolate': lambda: nn.Upsample(scale_factor=2, mode='bilinear'),
    'interpolate odd': lambda: nn.Upsample((13, 11), mode='bilinear'),
    'interpolate corners': lambda: nn.Upsample(
        (13, 11), mode='bilinear', align_corners=True
    ),
    'interpolate to one': lambda: nn.Upsample((1, 7), mode='bilinear'),
    'interpolate part': lambda: (
        lambda x: F.interpolate(x[..., 1:], scale_factor=0.5, mode='bilinear')
    ),
}
# torch calls interpolate in its place.
NO_CALL = ['upsample']


@each_kind(OPERATORS)
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name](), kind)


def test_every_operator_has_an_entry():
    assert without_entry(EXACT_OPERATORS, exact, OPERATORS) == NO_CALL


BETWEEN_LAYERS = {
    'softmax': lambda net, x: x.softmax(-1),
    'softmax of a module': lambda net, x: net.softmax(x),
    'softmax of another axis': lambda net, x: torch.softmax(x, dim=1),
    # It stays in float, and so does its sum with a constant.
    'softmax of a sum': lambda net, x: (x + torch.linspace(0, 3, 96)).softmax(-1),
    'layer norm': lambda net, x: net.norm(x),
    'layer norm of many': lambda net, x: net.wide_norm(x),
    'attention': lambda net, x: net.attention(x, x, x, attn_mask=MASK[:49, :49])[0],
    'attention without weights': lambda net, x: net.attention(
        x, x, x, need_weights=False
    )[0],
}


@pytest.mark.parametrize('preset', ['onnxruntime', 'jacinto'])
@pytest.mark.parametrize('name', BETWEEN_LAYERS)
def test_long_rows_have_the_same_bits(name, preset):
    net = Forward(
        lambda net, x: net.two(BETWEEN_LAYERS[name](net, net.one(x))),
        one=nn.Linear(96, 96),
        softmax=nn.Softmax(dim=-1),
        norm=nn.LayerNorm(96),
        wide_norm=nn.LayerNorm((49, 96)),
        attention=nn.MultiheadAttention(96, 4, batch_first=True),
        two=nn.Linear(96, 8),
    ).eval()
    with torch.no_grad():
        net.one.weight.mul_(3)
    shape = (2, 49, 96)
    inputs = Inputs(torch.randn(shape) * 2, torch.randn(shape) * 2)
    _, found = assert_exact(net, inputs, target=preset)
    assert found.unique().numel() > 3


@pytest.mark.parametrize('sizes', [(35, 40), (30, 16), (15, 4), (1, 3)])
def test_resizing_between_any_sizes(sizes):
    source, target = sizes
    net = Forward(
        lambda net, x: F.interpolate(net.one(x), (target, target), mode='bilinear'),
        one=nn.Conv2d(3, 8, 1),
    )
    shape = 1, 3, source, source
    inputs = Inputs(torch.randn(shape), torch.randn(shape))
    assert_exact(net, inputs, target='jacinto')

"""What a file can have as a constant, and what it cannot."""

import pytest
import torch
import torch.nn.functional as F
from exporting import export
from torch import nn
from toy_models import Forward

from mmquant_jacinto import QuantizeError


def written(x, index, value):
    x = x * 1.5
    x[index] = value
    return x


def between_layers(function):
    return Forward(
        lambda net, x: net.two(function(net.one(x))),
        one=nn.Conv2d(3, 8, 1),
        two=nn.Conv2d(8, 4, 1),
    )


FROM_THE_IMAGE = {
    'affine_grid': lambda x: F.grid_sample(
        x,
        F.affine_grid(x.mean((2, 3))[:, :6].view(1, 2, 3), x.shape, False),
        align_corners=False,
    ),
    'weight': lambda x: F.group_norm(x, 2, x.mean((0, 2, 3))),
    'bias': lambda x: F.conv2d(x, torch.ones(8, 8, 1, 1), x.mean((0, 2, 3))),
    'full': lambda x: x * torch.full((1, 8, 1, 1), x.mean()),
    'slice': lambda x: written(x, (0, slice(None, x.mean((0, 2, 3)).argmax())), 0.0),
}


@pytest.mark.parametrize('name', FROM_THE_IMAGE)
def test_what_follows_from_the_image_is_no_constant(name):
    net = between_layers(FROM_THE_IMAGE[name])
    with pytest.raises(QuantizeError):
        export(net, torch.randn(1, 3, 10, 10))

"""Operators of layers in a file: the integers of the model, for any input."""

import pytest
import torch
import torch.nn.functional as F
from exactness import (
    Inputs,
    assert_exact,
    assert_operator_exact,
    each_kind,
    without_entry,
)
from torch import nn
from toy_models import Forward

from mmquant_jacinto.export.operators import layer
from mmquant_jacinto.export.operators.table import TRANSLATIONS


def behind(form, layer):
    """A layer of the maps in another form."""
    return Forward(lambda net, x: net.layer(form(x)), layer=layer)


OPERATORS = {
    'conv1d': lambda: behind(lambda x: x.flatten(2), nn.Conv1d(4, 6, 3, 2, 1)),
    'conv2d': lambda: nn.Conv2d(4, 6, 3, 2, 1),
    'conv2d groups': lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2),
    'conv2d depthwise': lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
    'conv2d same': lambda: nn.Conv2d(4, 6, 4, padding='same'),
    'conv2d valid': lambda: nn.Conv2d(4, 6, 3, padding='valid'),
    'conv2d relu': lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()),
    'conv3d': lambda: behind(lambda x: x[:, None], nn.Conv3d(1, 3, 3)),
    'conv_transpose1d': lambda: behind(
        lambda x: x.flatten(2), nn.ConvTranspose1d(4, 6, 3, 2)
    ),
    'conv_transpose2d': lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
    'conv_transpose3d': lambda: behind(
        lambda x: x[:, None], nn.ConvTranspose3d(1, 3, 2)
    ),
    'linear': lambda: nn.Linear(8, 5),
    'linear transposed': lambda: behind(
        lambda x: x.flatten(2).transpose(1, 2), nn.Linear(4, 5)
    ),
    'linear rows': lambda: behind(lambda x: x.flatten(1), nn.Linear(256, 5)),
    'batch_norm': lambda: behind(lambda x: F.max_pool2d(x, 2), nn.BatchNorm2d(4)),
    'instance_norm': lambda: nn.InstanceNorm2d(4, affine=True),
}
PRODUCTS = {
    'rmatmul': lambda x, y: x.__rmatmul__(y),
    'matmul': lambda x, y: torch.matmul(x, y),
    'bmm': lambda x, y: torch.bmm(x.flatten(0, 1), y.flatten(0, 1)),
    'mm': lambda x, y: torch.mm(x.flatten(0, 2), y.flatten(0, 2).t()),
    'baddbmm': lambda x, y: torch.baddbmm(
        x.flatten(0, 1), x.flatten(0, 1), y.flatten(0, 1), beta=0.5
    ),
    'addmm': lambda x, y: torch.addmm(x[0, 0], x[0, 1], y[0, 2]),
    'normalize': lambda x: F.normalize(x),
    'einsum': lambda x, y: torch.einsum('nchw, nkhw -> nck', x, y),
    'einsum whole': lambda x, y: torch.einsum('n...w, n...w -> n...', x, y),
}


@pytest.mark.parametrize(
    'layer, positive',
    [
        (nn.ConvTranspose2d(256, 8, 4, 2, 1), False),
        (nn.ConvTranspose2d(256, 16, 4, 2, 1, groups=16, bias=False), False),
        # Its sums are beyond what float32 holds.
        (nn.ConvTranspose2d(512, 4, 4, 2, 1), True),
    ],
    ids=['random', 'groups', 'positive'],
)
def test_sums_of_many_products_are_exact_in_any_order(layer, positive):
    net = Forward(
        lambda net, x: net.norm(net.layer(net.first(x))),
        first=nn.Conv2d(3, layer.in_channels, 1),
        layer=layer,
        norm=nn.BatchNorm2d(layer.out_channels),
    )
    x = torch.rand(1, 3, 48, 48)
    if positive:
        with torch.no_grad():
            layer.weight.abs_()
            net.first.weight.abs_()
            net.first.bias.add_(2.0)
    assert_exact(net, Inputs(x, x + 0.1 * torch.rand_like(x)))


# torch normalizes no batch of none.
@each_kind(OPERATORS, but={('instance_norm', 'empty')})
def test_file_has_the_integers_of_the_layer(name, kind):
    assert_operator_exact(OPERATORS[name](), kind)


# ONNX Runtime 1.32 divides by a size of 0 in an Einsum, which ends the process; the
# other's operands are of the first image.
@each_kind(PRODUCTS, but={('einsum whole', 'empty'), ('addmm', 'empty')})
def test_file_has_the_integers_of_the_product(name, kind):
    assert_operator_exact(PRODUCTS[name], kind)


def test_every_operator_has_an_entry():
    # In test_sampling, and exact operators on grids of 8 bits, in test_exact.
    elsewhere = ['deform_conv2d', 'layer_norm', 'group_norm']
    found = [*OPERATORS, *PRODUCTS, *elsewhere]
    assert without_entry(TRANSLATIONS, layer, found) == []

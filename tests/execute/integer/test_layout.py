"""Tensors of the integer model lie in memory as those of the float model do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated

FUNCTIONS = {
    'softmax': lambda x: x.softmax(1),
    'layer_norm': lambda x: F.layer_norm(x, x.shape[-1:]),
    'group_norm': lambda x: F.group_norm(x, 2),
    'average': lambda x: F.avg_pool2d(x, 3),
    'average of borders': lambda x: F.avg_pool2d(x, 3, 2, 1, True),
    'resize': lambda x: F.interpolate(x, (5, 9), mode='bilinear'),
    'dyadic resize': lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
    'sample': lambda x: F.grid_sample(
        x,
        torch.linspace(-1, 1, 24).view(1, 3, 4, 2).expand(len(x), -1, -1, -1),
        align_corners=False,
    ),
    'sigmoid': torch.sigmoid,
    'sum': lambda x: x + x.flip(1),
    'product': lambda x: x * x.flip(1),
    'matrices': lambda x: x @ x,
    'layer': lambda x: F.conv2d(x, torch.ones(8, 8, 3, 3)),
}
LAYOUTS = {
    'contiguous': lambda x: x,
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'permuted': lambda x: x.permute(0, 3, 1, 2),
    'transposed': lambda x: x.transpose(2, 3),
    'part': lambda x: x[:, :, 1:, 1:],
}


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', FUNCTIONS)
def test_layout_is_that_of_the_float_model(name, layout, bits):
    net = Forward(
        lambda net, x: FUNCTIONS[name](LAYOUTS[layout](net.one(x) + 0)),
        one=nn.Conv2d(3, 8, 1),
    ).eval()
    # As many rows, columns and channels.
    x = torch.randn(2, 3, 9, 9) if layout == 'part' else torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x).stride()
    calibrated(net, x, target='onnxruntime', bits=bits)
    with torch.no_grad():
        assert net(x).stride() == expected

"""Smooth activations in their spellings, and a net that has one behind each layer."""

import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, randomize_norms

# Name of the call that gives the result, and the function.
SPELLINGS = {
    'silu': ('silu', F.silu),
    'silu module': ('silu', nn.SiLU(inplace=True)),
    'x * sigmoid': ('mul', lambda x: x * torch.sigmoid(x)),
    'sigmoid * x': ('mul', lambda x: x.sigmoid() * x),
    'mul_': ('mul', lambda x: x.mul_(x.sigmoid())),
    'hardswish': ('hardswish', F.hardswish),
    'x * hardsigmoid': ('mul', lambda x: x * F.hardsigmoid(x)),
    'gelu': ('gelu', F.gelu),
    'gelu tanh': ('gelu', lambda x: F.gelu(x, approximate='tanh')),
}
GATED = ('x * sigmoid', 'sigmoid * x', 'mul_', 'x * hardsigmoid')


def smooth_net(function, seed=0):
    """Convolution with normalization, depthwise one, and a last one."""
    torch.manual_seed(seed)
    return randomize_norms(
        Forward(
            lambda net, x: net.last(
                function(net.depth(function(net.norm(net.stem(x)))))
            ),
            stem=nn.Conv2d(3, 8, 3, bias=False),
            norm=nn.BatchNorm2d(8),
            depth=nn.Conv2d(8, 8, 3, groups=8),
            last=nn.Conv2d(8, 4, 1),
        )
    ).eval()

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


def uneven(activation, norm=True):
    """A depthwise block whose channels reach from 0.05 to 50, and matter alike."""
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.last(
            activation(net.norm2(net.depth(activation(net.norm(net.first(x))))))
        ),
        first=nn.Conv2d(3, 16, 3),
        norm=nn.BatchNorm2d(16) if norm else nn.Identity(),
        depth=nn.Conv2d(16, 16, 3, padding=1, groups=16),
        norm2=nn.BatchNorm2d(16) if norm else nn.Identity(),
        last=nn.Conv2d(16, 8, 1),
    )
    randomize_norms(net)
    scale = torch.logspace(-1.3, 1.7, 16)
    with torch.no_grad():
        for module in (net.norm, net.norm2) if norm else (net.first, net.depth):
            module.weight.mul_(scale.view(-1, *(1,) * (module.weight.dim() - 1)))
            module.bias.mul_(scale)
        # What comes small is needed large.
        net.depth.weight.div_(scale.view(-1, 1, 1, 1))
        net.last.weight.div_(scale.view(1, -1, 1, 1))
    return net.eval()

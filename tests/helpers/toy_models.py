"""Networks small enough to check by hand, and the short way to quantize one."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn

from mmquant_jacinto import QuantizeConfig, plan_model, quantize_model

INVERTED = 8  # channels


class ToyNet(nn.Module):
    """One of each thing that a graph tracer or a naive hook gets wrong.

    A module used twice (``act``), a functional activation behind a residual
    addition, and pooling, resizing and concatenation as functions.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 8, 1)
        self.lateral = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(12, 5)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.stem_norm(self.stem(x)))
        out = self.act(self.norm(self.conv(x)))
        out = F.relu(self.expand(out) + x)
        small = self.lateral(F.max_pool2d(out, 2))
        large = F.interpolate(small, scale_factor=2, mode='nearest')
        out = torch.cat([out, large], dim=1)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class ToyHead(nn.Module):
    """A head that every level of a pyramid shares."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Conv2d(8, 8, 3, padding=1)
        self.cls = nn.Conv2d(8, 2, 1)

    def forward(self, levels):
        return [self.cls(F.relu(self.tower(level))) for level in levels]


class ToyBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return [x, F.max_pool2d(x, 2)]


class ToyDetector(BaseModel):
    """A model of MMEngine: its parts are regions, it is none itself."""

    def __init__(self):
        super().__init__()
        self.backbone = ToyBackbone()
        self.head = ToyHead()

    def forward(self, inputs, mode='tensor'):
        # Decoding: outside all regions.
        return [out.sigmoid() for out in self.head(self.backbone(inputs))]


class Forward(nn.Module):
    """Modules by name, and a forward function given by the test.

    Examples:
        >>> Forward(lambda net, x: net.conv(x) + 1, conv=nn.Conv2d(3, 4, 1))
    """

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def randomize_norms(model):
    """Gives each batch normalization statistics that folding must respect."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def inverted(activation=nn.ReLU, width=INVERTED):
    """Expansion, depthwise and projection, as in MobileNetV2, and a stem."""
    return randomize_norms(
        Forward(
            lambda net, x: net.project_norm(
                net.project(
                    net.act(net.depth_norm(net.depth(net.act(net.norm(net.stem(x))))))
                )
            ),
            stem=nn.Conv2d(3, width, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(width),
            depth=nn.Conv2d(width, width, 3, groups=width, bias=False),
            depth_norm=nn.BatchNorm2d(width),
            project=nn.Conv2d(width, 4, 1, bias=False),
            project_norm=nn.BatchNorm2d(4),
            act=activation(),
        )
    ).eval()


def seeded(seed):
    """A generator of random numbers for where tensors are made."""
    return torch.Generator(torch.empty(0).device).manual_seed(seed)


def make_plan(model, inputs, **quantize):
    """The plan of a model for ``quantize=dict(...)``."""
    config = QuantizeConfig.parse(quantize or True)
    return plan_model(model, [lambda: model(inputs)], config)


def calibrated(model, inputs, phase='test', **quantize):
    """Quantizes a model in place, with the ranges of one batch.

    Returns:
        Quantization: In ``phase``, with frozen ranges.
    """
    quantization = quantize_model(model, make_plan(model, inputs, **quantize))
    quantization.set_phase('observe')
    with torch.no_grad():
        model(inputs)
    quantization.activations.observing = False
    quantization.set_phase(phase)
    return quantization


def float_state(net):
    """All parameters and buffers of a model, as a teacher takes them."""
    tensors = (*net.named_parameters(), *net.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


def losses_of(model, x):
    """A training step's losses."""
    return model(x, [], mode='loss')

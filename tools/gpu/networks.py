"""A backbone and a pyramid from torch alone, for where there is no MMDetection."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


class Bottleneck(nn.Module):
    """A residual block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = norm(width), norm(width), norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Identity()
        if inputs != outputs:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        return self.relu(self.norm3(self.conv3(out)) + self.short(x))


class ResNetFPN(nn.Module):
    """ResNet-50 and a feature pyramid; smaller ones by their arguments.

    Args:
        depths (Sequence[int]): Blocks of each stage.
        width (int): Channels of the first stage's bottlenecks.
        pyramid (int): Channels of the pyramid.
    """

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        pyramid: int = 256,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.norm = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.stages, self.laterals, self.outputs = (nn.ModuleList() for _ in range(3))
        channels = width
        for index, depth in enumerate(depths):
            blocks = []
            for block in range(depth):
                stride = 2 if index and not block else 1
                blocks.append(Bottleneck(channels, width << index, stride))
                channels = 4 * (width << index)
            self.stages.append(nn.Sequential(*blocks))
            self.laterals.append(nn.Conv2d(channels, pyramid, 1))
            self.outputs.append(nn.Conv2d(pyramid, pyramid, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(self.relu(self.norm(self.stem(x))), 3, 2, 1)
        levels = []
        for stage, lateral in zip(self.stages, self.laterals):
            x = stage(x)
            levels.append(lateral(x))
        for index in range(len(levels) - 1, 0, -1):
            size = levels[index - 1].shape[-2:]
            levels[index - 1] = levels[index - 1] + F.interpolate(
                levels[index], size=size, mode='nearest'
            )
        return [output(level) for output, level in zip(self.outputs, levels)]


def build(device: str) -> nn.Module:
    """The network that is timed: on a CPU, where scripts are tried, a small one."""
    torch.manual_seed(0)
    small = dict(depths=(1, 1), width=8, pyramid=16) if device == 'cpu' else {}
    return ResNetFPN(**small).to(device)


def loss_of(levels: list[Tensor]) -> Tensor:
    return sum(level.float().square().mean() for level in levels)

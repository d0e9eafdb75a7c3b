"""Samples of a deformable convolution, on the grid of what it reads.

A value between four pixels is no integer, and a sum of such values depends on the
order of adding. Rounded to the grid of the input, as an engine's resizing does, they
are integers again: what is left is a convolution of 1 x 1 over them, exact like any
other. The exported graph has the same operations
(:mod:`~mmquant_jacinto.export.deform_operators`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels import Grid
from .ops import per_axis

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of the four pixels: below, right


class Taps(NamedTuple):
    """Where a deformable convolution reads, but for its offsets.

    Args:
        kernel (Sequence[int]): Rows and columns of the weight.
        stride (Sequence[int]): Of rows and of columns.
        padding (Sequence[int]): The same.
        dilation (Sequence[int]): The same.
        groups (int): Of channels that have offsets of their own.
    """

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @classmethod
    def of(cls, kernel: Sequence[int], geometry: Sequence) -> Taps:
        """Those of a call, from what follows its operands."""
        stride, padding, dilation, _, groups = geometry[:5]
        axes = (per_axis(value, 2) for value in (stride, padding, dilation))
        return cls(tuple(kernel), *axes, groups)

    @property
    def count(self) -> int:
        """int: Positions that each output element reads."""
        return self.kernel[0] * self.kernel[1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output, from those of the input."""
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((height, width), *self[:4])
        )
        return rows, columns

    def positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where it reads without offsets: rows (K, H', 1) and columns (K, 1, W')."""
        starts = [
            torch.arange(count, dtype=torch.float32) * s - p
            for count, s, p in zip(self.size(height, width), self.stride, self.padding)
        ]
        taps = [
            torch.arange(k, dtype=torch.float32) * d
            for k, d in zip(self.kernel, self.dilation)
        ]
        rows = taps[0].repeat_interleave(self.kernel[1])[:, None] + starts[0]
        columns = taps[1].repeat(self.kernel[0])[:, None] + starts[1]
        return rows[:, :, None], columns[:, None, :]


def sample(
    x: Tensor, offset: Tensor, mask: Tensor | None, taps: Taps, grid: Grid
) -> Tensor:
    """What a deformable convolution multiplies, in integers.

    Args:
        x (Tensor): Integers less the zero point, float32: (N, C, H, W).
        offset (Tensor): In pixels, of rows and columns in turn:
            (N, 2 * groups * K, H', W'). Where it has more elements, the first of
            each image count, as in mmcv.
        mask (Tensor, optional): Factors of the samples: (N, groups * K, H', W').
        taps (Taps): Where it reads.
        grid (Grid): Of ``x``; Python numbers.

    Returns:
        Tensor: Integers, float32: (N, C * K, H', W'), the taps of a channel in
        turn.
    """
    batch, channels, height, width = x.shape
    size = taps.size(height, width)
    parts = batch * taps.groups  # images and their groups of channels
    offset = _first(offset, batch, (parts, taps.count, 2, *size))
    # Rows of what the channels of a group have at a pixel.
    pixels = x.reshape(parts, channels // taps.groups, -1).transpose(1, 2)
    pixels = pixels.reshape(parts * height * width, -1)
    first = torch.arange(parts, device=x.device).view(-1, 1, 1, 1) * height * width
    below, right = (
        offset[:, :, axis] + base.to(x.device)
        for axis, base in enumerate(taps.positions(height, width))
    )
    top, left = below.floor(), right.floor()
    down, across = below - top, right - left
    total = None
    for row, column in CORNERS:
        share = (down if row else 1 - down) * (across if column else 1 - across)
        y, x_ = top + row, left + column
        at_y, at_x = y.clamp(0, height - 1), x_.clamp(0, width - 1)
        # Outside there are zeros.
        share = share * ((at_y == y) & (at_x == x_)).float()
        index = first + at_y.long() * width + at_x.long()
        term = pixels[index.flatten()] * share.reshape(-1, 1)
        total = term if total is None else total + term
    if mask is not None:
        mask = _first(mask, batch, (parts, taps.count, *size))
        total = total * mask.reshape(-1, 1)
    total = total.round_().clamp_(grid.low, grid.high)
    samples = total.view(batch, taps.groups, taps.count, *size, -1)
    return samples.permute(0, 1, 5, 2, 3, 4).reshape(batch, -1, *size)


def _first(x: Tensor, batch: int, shape: Sequence[int]) -> Tensor:
    """The first elements of each image, in another shape, float32."""
    count = torch.Size(shape).numel() // batch
    return x.float().reshape(batch, -1)[:, :count].reshape(shape)

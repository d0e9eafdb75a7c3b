"""Sampling: values between pixels, in an order of adding that every engine can have.

What a kernel interpolates depends on the order in which it multiplies and adds, and
one tie that is rounded differently spreads through the layers behind it. Here it is
elementary operations, each rounded once; the exported graph has the same
(:mod:`~mmquant_jacinto.export.operators.sampling`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...quantizers.kernels import integer_kernels
from ...record.ops import per_axis
from ...targets.grid import Grid, round_tensor

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
        stride, padding, dilation = (
            tuple(per_axis(value, 2)) for value in geometry[:3]
        )
        return cls(tuple(kernel), stride, padding, dilation, geometry[4])

    @property
    def points(self) -> int:
        """int: Positions that each output element reads."""
        return self.kernel[0] * self.kernel[1]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output, from those of the input."""
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((height, width), *self[:4])
        )
        return rows, columns

    def positions(
        self, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Where it reads without offsets: rows (K, H', 1) and columns (K, 1, W')."""
        return _tap_positions(self, height, width, device)


def sample(
    x: Tensor, offset: Tensor, mask: Tensor | None, taps: Taps, grid: Grid
) -> Tensor:
    """What a deformable convolution multiplies, on the grid of its input.

    A value between pixels is no integer; rounded to the input's grid, as a resizing
    does, it is one again, and what is left is a convolution of 1 x 1, exact as any.

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
    offset = _first(offset, taps.groups, (taps.points, 2, *size))
    rows, columns = (
        (offset[:, :, axis] + base).flatten(1)
        for axis, base in enumerate(taps.positions(height, width, x.device))
    )
    pixels = x.reshape(parts, channels // taps.groups, height, width)
    samples = interpolate(pixels, rows, columns)
    if mask is not None:
        samples = samples * _first(mask, taps.groups, (samples.shape[1], 1))
    samples = round_tensor(samples, grid.rounding).clamp_(grid.low, grid.high)
    share = channels // taps.groups
    samples = samples.view(batch, taps.groups, taps.points, *size, share)
    samples = samples.permute(0, 1, 5, 2, 3, 4)
    return samples.reshape(batch, channels * taps.points, *size)


def sampled_weight(weight: Tensor) -> Tensor:
    """A weight over :func:`sample`'s channels: (O, C / groups * K, 1, 1)."""
    return weight.flatten(1)[..., None, None]


def convolve_samples(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    given: Grid,
    offset: Tensor,
    mask: Tensor | None,
    *geometry: Any,
) -> Tensor:
    """Sums of a deformable convolution, over samples on its input's grid."""
    taps = Taps.of(weight.shape[2:], geometry)
    samples = sample(x, offset, mask, taps, given).to(weight.dtype)
    return F.conv2d(samples, sampled_weight(weight), bias, groups=geometry[3])


def grid_sample(
    x: Tensor,
    given: Grid,
    grid: Tensor,
    mode: str = 'bilinear',
    padding_mode: str = 'zeros',
    align_corners: bool | None = None,
) -> Tensor:
    """``F.grid_sample`` of integers, bilinear, with zeros outside.

    Args:
        x (Tensor): Integers less the zero point, float32: (N, C, H, W).
        given (Grid): Of ``x``.
        grid (Tensor): Columns and rows, from -1 to 1: (N, H', W', 2).
        mode (str): ``'bilinear'``.
        padding_mode (str): ``'zeros'``.
        align_corners (bool, optional): Whether 1 is the last pixel or its far edge.

    Returns:
        Tensor: Real numbers, float32: (N, C, H', W').
    """
    places = []
    for axis in (0, 1):
        place = grid[..., axis].float().flatten(1) + 1.0
        size = x.shape[3 - axis]
        scaled = place * (size - 1) if align_corners else place * size - 1.0
        places.append(scaled * 0.5)
    out = interpolate(x, places[1], places[0]) * given.scale
    return out.transpose(1, 2).reshape(*x.shape[:2], *grid.shape[1:3])


class Resize(NamedTuple):
    """The arguments of ``F.interpolate`` behind its input."""

    size: Any = None
    scale_factor: Any = None
    mode: str = 'nearest'
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None
    antialias: bool = False

    def target(self, source: Sequence[int]) -> list[int]:
        """Size of its output, from that of its input."""
        if self.size is None:
            factors = self._factors(len(source))
            return [math.floor(s * factor) for s, factor in zip(source, factors)]
        if isinstance(self.size, (tuple, list)):
            return [int(size) for size in self.size]
        return [int(self.size)] * len(source)

    def is_dyadic(self, source: Sequence[int], target: Sequence[int]) -> bool:
        """Whether any kernel interpolates 8-bit integers exactly.

        Kernels divide by the scale, so it is not enough that the places are round.
        """
        if self.align_corners:
            steps = ((s - 1) / max(t - 1, 1) for s, t in zip(source, target))
            return all((16 * step).is_integer() for step in steps)
        scales = self.scales(source, target)
        return all(math.log2(scale).is_integer() for scale in scales)

    def scales(self, source: Sequence[int], target: Sequence[int]) -> list[float]:
        """How many pixels it makes of one, along each axis.

        The call's factor where it has one: where that does not divide the size, it is
        not the ratio of the sizes.

        Args:
            source (Sequence[int]): Size of its input.
            target (Sequence[int]): Size of its output.
        """
        if self.scale_factor is None or self.recompute_scale_factor:
            return [t / s for s, t in zip(source, target)]
        return self._factors(len(source))

    def _factors(self, dims: int) -> list[float]:
        if isinstance(self.scale_factor, (tuple, list)):
            return [float(factor) for factor in self.scale_factor]
        return [float(self.scale_factor)] * dims

    def positions(
        self, source: Sequence[int], target: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Where it reads, in pixels: rows and columns of all points, (P,) each."""
        scales = tuple(self.scales(source, target))
        places = _places(
            tuple(source), tuple(target), scales, bool(self.align_corners), device
        )
        rows, columns = torch.meshgrid(*places, indexing='ij')
        return rows.flatten(), columns.flatten()


def interpolate(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear interpolation; outside there are zeros.

    Args:
        x (Tensor): (N, C, H, W).
        rows (Tensor): Where to, in pixels: (N, P).
        columns (Tensor): The same.

    Returns:
        Tensor: (N, P, C).
    """
    parts, channels, height, width = x.shape
    # Rows of what the channels have at a pixel.
    pixels = x.flatten(2).transpose(1, 2).reshape(-1, channels).contiguous()
    if integer_kernels.takes_places(pixels, rows, columns):
        return integer_kernels.interpolate(pixels, rows, columns, (height, width))
    first = torch.arange(parts, device=x.device)[:, None] * height * width
    top, left = rows.floor(), columns.floor()
    down, across = rows - top, columns - left
    total = None
    for row, column in CORNERS:
        share = (down if row else 1 - down) * (across if column else 1 - across)
        y, x_ = top + row, left + column
        at_y, at_x = y.clamp(0, height - 1), x_.clamp(0, width - 1)
        share = share * ((at_y == y) & (at_x == x_)).float()
        # Once more, for places that are no numbers.
        at_y, at_x = at_y.long().clamp_(0, height - 1), at_x.long().clamp_(0, width - 1)
        index = first + at_y * width + at_x
        found = pixels[index.flatten()].view(parts, rows.shape[1], channels)
        term = found * share[..., None]
        total = term if total is None else total + term
    return total


def _first(x: Tensor, groups: int, shape: Sequence[int]) -> Tensor:
    """The first elements of each image, float32: (N * groups, *shape)."""
    count = groups * math.prod(shape)
    return x.float().flatten(1)[:, :count].reshape(len(x) * groups, *shape)


# What follows from sizes alone is copied to a device once, as a copy waits for the
# host. Made in inference mode, it could not be used outside of it later.
@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)
def _tap_positions(
    taps: Taps, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    starts = [
        torch.arange(count, dtype=torch.float32) * s - p
        for count, s, p in zip(taps.size(height, width), taps.stride, taps.padding)
    ]
    steps = [
        torch.arange(k, dtype=torch.float32) * d
        for k, d in zip(taps.kernel, taps.dilation)
    ]
    rows = steps[0].repeat_interleave(taps.kernel[1])[:, None] + starts[0]
    columns = steps[1].repeat(taps.kernel[0])[:, None] + starts[1]
    return rows[:, :, None].to(device), columns[:, None, :].to(device)


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)
def _places(
    source: tuple[int, ...],
    target: tuple[int, ...],
    scales: tuple[float, ...],
    align_corners: bool,
    device: torch.device,
) -> list[Tensor]:
    """Where a resizing reads along each axis: (target,), float32."""
    places = []
    for size, count, scale in zip(source, target, scales):
        index = torch.arange(count, dtype=torch.float64)
        if align_corners:
            place = index * ((size - 1) / max(count - 1, 1))
        else:
            place = (index + 0.5) / scale - 0.5
        places.append(place.clamp_(0, size - 1).float().to(device))
    return places

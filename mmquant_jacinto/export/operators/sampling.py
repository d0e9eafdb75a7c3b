"""Values between pixels, as ONNX nodes.

See :mod:`~mmquant_jacinto.execute.integer.sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...execute.integer.sampling import CORNERS, Taps
from ...targets.grid import Grid
from ...targets.storage import Storage
from .translation import SiteWriter


def write_samples(
    site: SiteWriter,
    x: str,
    given: Grid,
    storage: Storage,
    like: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    taps: Taps,
) -> str:
    """What a deformable convolution multiplies, on the grid of its input.

    Args:
        site (SiteWriter): Where it is called.
        x (str): Its input, in steps of its grid.
        given (Grid): Of its input.
        storage (Storage): The same.
        like (Tensor): Of the input's shape (N, C, H, W).
        offset (Tensor): As the call has it.
        mask (Tensor, optional): The same.
        taps (Taps): Where it reads.

    Returns:
        str: Name of the samples in real numbers: (N, C * K, H', W').
    """
    batch, channels, height, width = like.shape
    size, parts = taps.size(height, width), batch * taps.groups
    share, count = channels // taps.groups, taps.points * size[0] * size[1]
    moves = _first(site, offset, batch, (parts, taps.points, 2, *size))
    places = []
    for axis, base in enumerate(taps.positions(height, width, like.device)):
        place = site.node('Gather', moves, site.ints(axis), axis=2)
        places.append(site.reshape(site.node('Add', place, base), (parts, count)))
    pixels = site.reshape(x, (parts, share, height, width))
    total = interpolate(site, pixels, (parts, share, height, width), *places)
    if mask is not None:
        factors = _first(site, mask, batch, (parts, count, 1))
        total = site.node('Mul', total, factors)
    low, high = storage.low - storage.zero_point, storage.high - storage.zero_point
    if (given.low, given.high) != (low, high):
        total = site.node('Clip', total, float(given.low), float(given.high))
    unit = given._replace(scale=1.0)
    samples = site.writer.quantize(total, unit, storage, f'{site.name}:samples')
    samples = site.reshape(samples, (batch, taps.groups, taps.points, *size, share))
    samples = site.node('Transpose', samples, perm=[0, 1, 5, 2, 3, 4])
    samples = site.reshape(samples, (batch, channels * taps.points, *size))
    return site.writer.dequantize(samples, given, storage, f'{site.name}:samples')


def grid_sample(
    site: SiteWriter,
    x: str,
    given: Grid,
    like: Tensor,
    grid: Tensor,
    mode: str = 'bilinear',
    padding_mode: str = 'zeros',
    align_corners: bool | None = None,
) -> str:
    """One of the exact operators."""
    batch, channels = like.shape[:2]
    count = grid.shape[1] * grid.shape[2]
    places = []
    for axis in (0, 1):
        size = like.shape[3 - axis]
        place = site.node('Gather', grid, site.ints(axis), axis=3)
        place = site.node('Add', site.reshape(place, (batch, count)), 1.0)
        if align_corners:
            place = site.node('Mul', place, float(size - 1))
        else:
            place = site.node('Sub', site.node('Mul', place, float(size)), 1.0)
        places.append(site.node('Mul', place, 0.5))
    out = interpolate(site, x, like.shape, places[1], places[0])
    out = site.node('Mul', out, given.scale)
    out = site.node('Transpose', out, perm=[0, 2, 1])
    return site.reshape(out, (batch, channels, *grid.shape[1:3]))


def interpolate(
    site: SiteWriter, x: str, shape: Sequence[int], rows: str, columns: str
) -> str:
    """Bilinear interpolation: (N, P, C) from (N, C, H, W) at (N, P)."""
    parts, channels, height, width = shape
    pixels = site.reshape(x, (parts, channels, height * width))
    pixels = site.node('Transpose', pixels, perm=[0, 2, 1])
    down, across = _Places(site, rows, height - 1), _Places(site, columns, width - 1)
    total = None
    for row, column in CORNERS:
        share = site.node('Mul', down.weight[row], across.weight[column])
        inside = site.node('And', down.inside[row], across.inside[column])
        share = site.node('Mul', share, site.cast(inside, torch.float32))
        index = site.node('Mul', down.index[row], site.ints(width))
        index = _last(site, site.node('Add', index, across.index[column]))
        found = site.node('GatherND', pixels, index, batch_dims=1)
        term = site.node('Mul', found, _last(site, share))
        total = term if total is None else site.node('Add', total, term)
    return total


class _Places:
    """Along one axis, the two pixels that each sample lies between.

    Attributes:
        index (List[str]): Of the pixel before and of that behind it, int64.
        weight (List[str]): Of either.
        inside (List[str]): Whether the image has it.
    """

    def __init__(self, site: SiteWriter, place: str, last: int) -> None:
        before = site.node('Floor', place)
        share = site.node('Sub', place, before)
        self.weight = [site.node('Sub', 1.0, share), share]
        self.index, self.inside = [], []
        for pixel in (before, site.node('Add', before, 1.0)):
            nearest = site.node('Clip', pixel, 0.0, float(last))
            self.index.append(site.cast(nearest, torch.int64))
            self.inside.append(site.node('Equal', nearest, pixel))


def _last(site: SiteWriter, x: str) -> str:
    """With one axis more, the last."""
    return site.node('Unsqueeze', x, site.ints([-1]))


def _first(site: SiteWriter, x: Tensor, batch: int, shape: Sequence[int]) -> str:
    """The first elements of each image, in another shape."""
    if torch.Size(shape).numel() == x.numel():
        return site.reshape(x, shape)
    count = torch.Size(shape).numel() // batch
    rows = site.reshape(x, (batch, -1))
    axes = (site.ints([value]) for value in (0, count, 1))
    return site.reshape(site.node('Slice', rows, *axes), shape)

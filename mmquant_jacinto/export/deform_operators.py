"""What a deformable convolution reads, as ONNX nodes: see ``deform_samples``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..deform_samples import CORNERS, Taps
from ..kernels import Grid
from .targets import Storage
from .translation import SiteWriter


def write_samples(
    site: SiteWriter,
    source: str,
    given: Grid,
    storage: Storage,
    like: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    taps: Taps,
) -> str:
    """Writes the samples, on the grid of what they are taken from.

    Args:
        site (SiteWriter): Where the convolution is called.
        source (str): Stored integers of its input.
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
    flat = (parts, taps.count * size[0] * size[1], 1)
    share = channels // taps.groups
    pixels = site.reshape(source, (parts, share, height * width))
    pixels = site.node('Transpose', pixels, perm=[0, 2, 1])
    offset = _first(site, offset, batch, (parts, taps.count, 2, *size))
    rows, columns = (
        _Places(site, site.node('Gather', offset, site.ints(axis), axis=2), base, limit)
        for axis, (base, limit) in enumerate(
            zip(taps.positions(height, width), (height - 1, width - 1))
        )
    )
    unit = given._replace(scale=1.0)
    total = None
    for row, column in CORNERS:
        weight = site.node('Mul', rows.weight[row], columns.weight[column])
        inside = site.node('And', rows.inside[row], columns.inside[column])
        weight = site.node('Mul', weight, site.cast(inside, torch.float32))
        index = site.node('Mul', rows.index[row], site.ints(width))
        index = site.node('Add', index, columns.index[column])
        found = site.node('GatherND', pixels, site.reshape(index, flat), batch_dims=1)
        found = site.writer.dequantize(found, unit, storage, f'{site.name}:pixels')
        term = site.node('Mul', found, site.reshape(weight, flat))
        total = term if total is None else site.node('Add', total, term)
    if mask is not None:
        mask = _first(site, mask, batch, flat)
        total = site.node('Mul', total, mask)
    low, high = storage.low - storage.zero_point, storage.high - storage.zero_point
    if (given.low, given.high) != (low, high):
        total = site.node('Clip', total, float(given.low), float(given.high))
    samples = site.writer.quantize(total, unit, storage, f'{site.name}:samples')
    shape = (batch, taps.groups, taps.count, *size, share)
    samples = site.reshape(samples, shape)
    samples = site.node('Transpose', samples, perm=[0, 1, 5, 2, 3, 4])
    samples = site.reshape(samples, (batch, channels * taps.count, *size))
    return site.writer.dequantize(samples, given, storage, f'{site.name}:samples')


class _Places:
    """Along one axis, the two pixels that each sample lies between.

    Attributes:
        index (List[str]): Of the pixel before and of that behind it, int64.
        weight (List[str]): Of either.
        inside (List[str]): Whether the image has it.
    """

    def __init__(self, site: SiteWriter, offset: str, base: Tensor, last: int) -> None:
        place = site.node('Add', offset, base)
        before = site.node('Floor', place)
        share = site.node('Sub', place, before)
        self.weight = [site.node('Sub', 1.0, share), share]
        self.index, self.inside = [], []
        for pixel in (before, site.node('Add', before, 1.0)):
            nearest = site.node('Clip', pixel, 0.0, float(last))
            self.index.append(site.cast(nearest, torch.int64))
            self.inside.append(site.node('Equal', nearest, pixel))


def _first(site: SiteWriter, x: Tensor, batch: int, shape: Sequence[int]) -> str:
    """The first elements of each image, in another shape."""
    count = torch.Size(shape).numel() // batch
    if count * batch == x.numel():
        return site.reshape(x, shape)
    rows = site.reshape(x, (batch, -1))
    axes = (site.ints([value]) for value in (0, count, 1))
    return site.reshape(site.node('Slice', rows, *axes), shape)

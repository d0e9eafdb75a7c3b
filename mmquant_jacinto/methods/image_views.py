"""Views of images: few images without labels, seen differently each time.

A network is taught what it gives in float itself, so whatever is shown needs no label:
parts of an image, mirrored, lighter or darker, as in random resized crops (Szegedy et
al., arXiv 1409.4842), and mosaics of such parts of several. Without them thirteen
images are learned by heart.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Least side of the part that is shown, as a share of the image's.
LEAST_SIDE = 0.4
# Share by which contrast is changed, and brightness in standard deviations.
MOST_CONTRAST, MOST_SHIFT = 0.3, 0.3
CHANNELS = (1, 3)
# Share of the images in whose place there are mosaics (Bochkovskiy et al., arXiv
# 2004.10934), and the least side of their parts, as a share of the image's.
MOSAICS, LEAST_PART = 0.5, 0.25


def image_view(batch: Any, seed: int) -> Any:
    """A view of a batch that has some: the same shapes, other images.

    Args:
        batch (Any): A tensor of images (N, C, H, W), or a dict whose ``inputs`` are
            such a tensor or a list of images (C, H, W), of 1 or 3 channels.
        seed (int): Another view for another.

    Returns:
        Any: Like ``batch``.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(batch, Tensor):
        return torch.stack(_views(batch.unbind(), generator))
    inputs = batch['inputs']
    if isinstance(inputs, Tensor):
        seen: Any = torch.stack(_views(inputs.unbind(), generator))
    else:
        seen = _views(inputs, generator)
    # A preprocessor may change its batch in place.
    rest = {key: item for key, item in batch.items() if key != 'inputs'}
    return {**copy.deepcopy(rest), 'inputs': seen}


def has_views(batch: Any) -> bool:
    """Whether a batch holds images, see :func:`image_view`."""
    if isinstance(batch, Tensor):
        return _are_images(batch, 4)
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    if isinstance(inputs, Tensor):
        return _are_images(inputs, 4)
    return (
        isinstance(inputs, (list, tuple))
        and len(inputs) > 0
        and all(isinstance(x, Tensor) and _are_images(x, 3) for x in inputs)
    )


def _are_images(x: Tensor, dims: int) -> bool:
    is_number = x.is_floating_point() or x.dtype == torch.uint8
    return is_number and x.dim() == dims and x.shape[-3] in CHANNELS and x.numel() > 0


def _views(images: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A view of each image: a part of it, or a mosaic of parts of any of them."""
    seen = []
    for x in images:
        drawn = torch.rand(3, generator=generator, device=generator.device)
        is_mosaic, *middle = drawn.tolist()
        if is_mosaic < MOSAICS:
            seen.append(_mosaic(x, images, middle, generator))
        else:
            seen.append(_view(x, x.shape[-2:], generator))
    return seen


def _mosaic(
    x: Tensor,
    images: Sequence[Tensor],
    middle: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """Four parts of images around a point, in size and dtype of ``x``."""
    height, width = x.shape[-2:]
    row, column = (
        max(1, round(size * (LEAST_PART + (1 - 2 * LEAST_PART) * place)))
        for size, place in zip((height, width), middle)
    )
    seen = x.clone()
    images = [image for image in images if len(image) == len(x)]
    which = torch.randint(
        len(images), (4,), generator=generator, device=generator.device
    )
    for number, index in enumerate(which.tolist()):
        rows = slice(0, row) if number < 2 else slice(row, height)
        columns = slice(0, column) if number % 2 == 0 else slice(column, width)
        place = seen[..., rows, columns]
        if place.numel():
            place.copy_(_view(images[index], place.shape[-2:], generator))
    return seen


def _view(x: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """A part of an image (C, H, W), in its dtype: (C, *size)."""
    drawn = torch.rand(6, generator=generator, device=generator.device)
    share, top, left, mirrored, gain, shift = drawn.tolist()
    height, width = x.shape[-2:]
    side = LEAST_SIDE + (1 - LEAST_SIDE) * share
    rows, columns = max(1, round(side * height)), max(1, round(side * width))
    top, left = round(top * (height - rows)), round(left * (width - columns))
    part = x[..., top : top + rows, left : left + columns].float()
    part = F.interpolate(
        part[None], size=tuple(size), mode='bilinear', align_corners=False
    )[0]
    if mirrored < 0.5:
        part = part.flip(-1)
    mean, deviation = part.mean(), part.std(unbiased=False)
    gain = 1 + MOST_CONTRAST * (2 * gain - 1)
    part = (part - mean) * gain + mean + MOST_SHIFT * (2 * shift - 1) * deviation
    part = part.clamp(x.min().float(), x.max().float())
    return part.round().to(x.dtype) if x.dtype == torch.uint8 else part.to(x.dtype)

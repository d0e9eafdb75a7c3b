"""Masks of several segmentors against the truth: scores, what differs, pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

IOU = 'mIoU'
IGNORED = 255  # of a truth, as MMSegmentation marks what counts for nothing
LARGEST_MASK = 420  # pixels of a side that is kept for a picture
GOLDEN = 0.618034  # of a turn: hues of neighbouring classes are far apart
LOST, GAINED = (224, 49, 49), (47, 174, 77)


class Segmentation(NamedTuple):
    """What a segmentor makes of an image.

    Args:
        path (str): Of the image; empty where it is not known.
        truth (ndarray): Classes, of every so many pixels: (h, w), uint8.
        found (ndarray): The same, as predicted.
        counts (ndarray): Pixels of the whole image by class, int64: in common, of the
            prediction, of the truth: (3, C).
    """

    path: str
    truth: np.ndarray
    found: np.ndarray
    counts: np.ndarray


def read_segmentation(sample: Any) -> Segmentation | None:
    """The masks in a data sample of MMSegmentation.

    Returns:
        Segmentation, optional: None without a truth of the prediction's size.
    """
    masks = [getattr(sample, name, None) for name in ('pred_sem_seg', 'gt_sem_seg')]
    if any(mask is None or 'data' not in mask for mask in masks):
        return None
    found, truth = (mask.data.detach().cpu().numpy().squeeze() for mask in masks)
    if found.shape != truth.shape or found.ndim != 2:
        return None
    found, truth = found.astype(np.uint8), truth.astype(np.uint8)
    path = str(sample.get('img_path', '') or '')
    step = max(1, -(-max(truth.shape) // LARGEST_MASK))
    counts = count(found, truth)
    truth, found = (mask[::step, ::step].copy() for mask in (truth, found))
    return Segmentation(path, truth, found, counts)


def count(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels by class: in common, of the prediction, of the truth: (3, 255)."""
    known = truth != IGNORED
    found, truth = found[known], truth[known]
    common = found[found == truth]
    return np.stack(
        [np.bincount(x, minlength=IGNORED)[:IGNORED] for x in (common, found, truth)]
    )


def mean_iou(counts: Sequence[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Mean over classes of intersection over union, of draws of images, from 0 to 1.

    Args:
        counts (Sequence[ndarray]): By image, of :func:`count`.
        draws (ndarray): How often each image is drawn: (B, I).

    Returns:
        ndarray: (B,).
    """
    common, found, truth = np.einsum('bi,ijc->jbc', draws, np.stack(counts))
    union = found + truth - common
    # What is neither there nor found is no class of the images.
    present = union > 0
    ratios = common / np.maximum(union, 1)
    return ratios.sum(1) / np.maximum(present.sum(1), 1)


def differences(first: Segmentation, other: Segmentation) -> dict[str, np.ndarray]:
    """Pixels that both have right (``kept``), the first alone, the other alone."""
    known = first.truth != IGNORED
    before, after = (known & (x.found == x.truth) for x in (first, other))
    return dict(
        kept=before & after, lost=before & ~after, gained=~before & after, known=known
    )


def compare(networks: Mapping[str, Sequence[Segmentation]]) -> dict[str, float]:
    """Shares of pixels that float and quantized network have right."""
    if not {'float', 'quantized'} <= networks.keys():
        return {}
    sums = dict(kept=0, lost=0, gained=0, known=0)
    for pair in zip(networks['float'], networks['quantized']):
        for name, mask in differences(*pair).items():
            sums[name] += int(mask.sum())
    whole = max(1, sums.pop('known'))
    return {name: number / whole for name, number in sums.items()}


def differs(images: Sequence[Segmentation]) -> float:
    """How much networks differ on an image; a single one, from the truth."""
    first, *others = images
    if not others:
        return float(np.mean((first.found != first.truth) & (first.truth != IGNORED)))
    return sum(float(np.mean(first.found != other.found)) for other in others)


def color_of(label: int) -> tuple[int, int, int]:
    """A color for a class, always the same, none of them dark."""
    red, green, blue = colorsys.hsv_to_rgb(GOLDEN * label % 1.0, 0.55, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def panels(image: Any, networks: Sequence[Segmentation]) -> list[Any]:
    """The truth, then the masks of networks, over an image.

    What the first has right and another one has not is red in that, and the other way
    round green.

    Args:
        image (PIL.Image): In RGB.
        networks (Sequence[Segmentation]): Of it, the same truth in all.

    Returns:
        List[PIL.Image]: One more than networks.
    """
    first, *others = networks
    found = [
        paint(image, first.truth, first.truth),
        paint(image, first.found, first.truth),
    ]
    for other in others:
        marks = differences(first, other)
        found.append(paint(image, other.found, other.truth, marks))
    return found


def paint(
    image: Any,
    mask: np.ndarray,
    truth: np.ndarray,
    marks: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """Classes over an image, half transparent; nothing where the truth is ignored."""
    from PIL import Image

    height, width = mask.shape
    pixels = np.asarray(image.resize((width, height))).astype(float)
    colors = np.array([color_of(label) for label in range(256)], dtype=float)
    known = truth != IGNORED
    pixels[known] = 0.5 * pixels[known] + 0.5 * colors[mask[known]]
    for name, color in (('lost', LOST), ('gained', GAINED)):
        if marks is not None:
            pixels[marks[name]] = color
    return Image.fromarray(pixels.round().astype(np.uint8))

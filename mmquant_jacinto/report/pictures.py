"""Pictures of what several networks predict, and what these score."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .content import Report
from .detections import (
    ACCURACY,
    METRIC,
    Detections,
    Prediction,
    Truth,
    best_threshold,
    draw,
    mean_precision,
    scores_of,
)
from .segmentations import IOU, Segmentation, compare, differs, mean_iou, panels

MOST_PICTURES = 6
LARGEST_SIDE = 420  # pixels of an image in the page
GAP = 8  # pixels between two networks
HIT, MISS, TRUTH = '#2fae4d', '#e03131', 'black'


class Comparison:
    """Predictions of several networks on the same images, float first."""

    def __init__(self) -> None:
        self.found: dict[str, list[Any]] = {}

    def add(self, predictions: Mapping[str, Any]) -> None:
        """Notes what the networks make of an image.

        Args:
            predictions (Mapping[str, Any]): Network to what
                :func:`~.detections.read_prediction` gives; of each image the same ones.
        """
        for network, prediction in predictions.items():
            self.found.setdefault(network, []).append(prediction)

    def fill(self, report: Report, most: int = MOST_PICTURES) -> list[str]:
        """Adds scores and counts to a report.

        Args:
            report (Report): Of the networks.
            most (int): Pictures at most.

        Returns:
            List[str]: Pictures as ``data:`` addresses, where something differs.
        """
        every = [item for row in self.found.values() for item in row]
        if not every:
            return []
        if all(isinstance(item, float) for item in every):
            self._fill_accuracy(report)
        elif all(isinstance(item, Segmentation) for item in every):
            return self._fill_masks(report, most)
        elif all(isinstance(item, Prediction) for item in every):
            truths = [item.truth for item in next(iter(self.found.values()))]
            if sum(len(truth.labels) for truth in truths):
                return self._fill_detections(report, truths, most)
        return []

    def _fill_accuracy(self, report: Report) -> None:
        images = len(next(iter(self.found.values())))
        values = {
            network: draw(images) @ np.array(right) / images
            for network, right in self.found.items()
        }
        report.scores += scores_of(ACCURACY, values, images)

    def _fill_masks(self, report: Report, most: int) -> list[str]:
        images = list(zip(*self.found.values()))
        draws = draw(len(images))
        values = {
            network: mean_iou([item.counts for item in row], draws)
            for network, row in self.found.items()
        }
        report.scores += scores_of(IOU, values, len(images))
        report.pictures = dict(
            images=len(images), networks=list(self.found), **compare(self.found)
        )
        order = sorted(range(len(images)), key=lambda index: -differs(images[index]))
        return [
            picture
            for index in order[:most]
            if differs(images[index])
            for picture in draw_masks(images[index])
        ]

    def _fill_detections(
        self, report: Report, truths: list[Truth], most: int
    ) -> list[str]:
        draws = draw(len(truths))
        networks = {
            network: [item.found for item in row] for network, row in self.found.items()
        }
        values = {
            network: mean_precision(found, truths, draws)
            for network, found in networks.items()
        }
        report.scores += scores_of(METRIC, values, len(truths))
        threshold = best_threshold(next(iter(networks.values())), truths)
        images = list(zip(*networks.values()))
        report.pictures = dict(
            threshold=threshold,
            images=len(truths),
            networks=list(networks),
            **_count(networks, threshold),
        )
        differs = [_differs(*pair, threshold) for pair in zip(images, truths)]
        order = sorted(range(len(images)), key=lambda index: (-differs[index], -index))
        return [
            picture
            for index in order[:most]
            if differs[index]
            for picture in draw_picture(truths[index], images[index], threshold)
        ]


def _count(
    networks: Mapping[str, Sequence[Detections]], threshold: float
) -> dict[str, int]:
    """Hits that float and quantized network share, where there are both."""
    if not {'float', 'quantized'} <= networks.keys():
        return {}
    counts = dict(kept=0, lost=0, gained=0)
    for pair in zip(networks['float'], networks['quantized']):
        before, after = (_hit_truths(item, threshold) for item in pair)
        counts['kept'] += len(before & after)
        counts['lost'] += len(before - after)
        counts['gained'] += len(after - before)
    return counts


def _differs(found: Sequence[Detections], truth: Truth, threshold: float) -> int:
    """How much networks differ on an image; of a single one, from the truth."""
    hits = [_hit_truths(item, threshold) for item in found]
    false = [_misses(item, threshold) for item in found]
    if len(found) == 1:
        return len(truth.labels) - len(hits[0]) + false[0]
    return sum(
        len(hits[0] ^ other) + abs(false[0] - count)
        for other, count in zip(hits[1:], false[1:])
    )


def _hit_truths(found: Detections, threshold: float) -> set[int]:
    return set(found.hits[(found.scores >= threshold) & (found.hits >= 0)].tolist())


def _misses(found: Detections, threshold: float) -> int:
    return int(np.sum((found.scores >= threshold) & (found.hits < 0)))


def draw_picture(
    truth: Truth, networks: Sequence[Detections], threshold: float
) -> list[str]:
    """An image once for each network, with its detections.

    Returns:
        List[str]: A ``data:`` address; nothing where the image cannot be read.
    """
    from PIL import ImageDraw

    image, size = open_image(truth.path, LARGEST_SIDE)
    if image is None:
        return []
    scale, found_panels = image.width / size, []
    for found in networks:
        panel = image.copy()
        canvas = ImageDraw.Draw(panel)
        for box in truth.boxes:
            canvas.rectangle(_corners(box * scale), outline=TRUTH, width=1)
        for box, number, hit in zip(found.boxes, found.scores, found.hits):
            if number >= threshold:
                color = HIT if hit >= 0 else MISS
                canvas.rectangle(_corners(box * scale), outline=color, width=2)
        found_panels.append(panel)
    return [side_by_side(found_panels)]


def draw_masks(networks: Sequence[Segmentation]) -> list[str]:
    """The truth of an image, then the masks of each network.

    Returns:
        List[str]: As of :func:`draw_picture`.
    """
    image, _ = open_image(networks[0].path)
    return [] if image is None else [side_by_side(panels(image, networks))]


def open_image(path: str, side: int | None = None) -> tuple[Any, int]:
    """An image in RGB, and the width that it has in its file.

    Args:
        path (str): Of the file.
        side (int, optional): Pixels of the longer side at most.

    Returns:
        Tuple[Image, int]: None and 0 where it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width = image.width
            if side is not None:
                # Ahead of all else: of a JPEG it decodes no more than that takes.
                image.thumbnail((side, side))
            return image.convert('RGB'), width
    except OSError:
        return None, 0


def side_by_side(images: Sequence[Any]) -> str:
    """Images of one size as one, as a ``data:`` address."""
    # A figure of matplotlib takes as long as testing the image.
    from PIL import Image

    width, height = images[0].size
    page = Image.new('RGB', (len(images) * (width + GAP) - GAP, height), 'white')
    for place, image in enumerate(images):
        page.paste(image, (place * (width + GAP), 0))
    content = io.BytesIO()
    page.save(content, format='jpeg', quality=80)
    text = base64.b64encode(content.getvalue()).decode()
    return f'data:image/jpeg;base64,{text}'


def pixels(picture: str) -> np.ndarray:
    """What a picture shows, as visualizers take it: (H, W, 3), RGB, uint8.

    Args:
        picture (str): As :func:`draw_picture` gives it.
    """
    from PIL import Image

    content = base64.b64decode(picture.partition(',')[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))


def _corners(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, max(x1, x2), max(y1, y2)]

"""Pictures of detections in float and quantized, and what both score."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .content import Report
from .detections import (
    ACCURACY,
    METRIC,
    Detections,
    Truth,
    best_threshold,
    detections_of,
    draw,
    mean_precision,
    score,
    truth_of,
)

MOST_PICTURES = 6
LARGEST_SIDE = 420  # pixels of an image in the page
GAP = 8  # pixels between float and quantized
HIT, MISS, TRUTH = '#2fae4d', '#e03131', 'black'

Pair = tuple[Any, Any]  # predictions of an image: in float, quantized


class Comparison:
    """Predictions of both networks on the same images.

    Args:
        predict (Callable): Given a batch of one image and whether in float, gives its
            data sample.
    """

    def __init__(self, predict: Callable[[Any, bool], Any]) -> None:
        self.predict = predict
        self.pairs: list[Pair] = []

    def add(self, batch: Any) -> None:
        """Runs both networks on an image."""
        self.pairs.append((self.predict(batch, True), self.predict(batch, False)))

    def fill(self, report: Report) -> list[str]:
        """Adds scores and counts to a report.

        Returns:
            List[str]: Pictures as ``data:`` addresses, where something differs.
        """
        if not self.pairs:
            return []
        if all(_is_classified(sample) for pair in self.pairs for sample in pair):
            self._fill_accuracy(report)
            return []
        if not all(hasattr(sample, 'pred_instances') for sample in self.pairs[0]):
            return []
        if 'bboxes' not in self.pairs[0][0].pred_instances:
            return []
        found = [truth_of(pair[0]) for pair in self.pairs]
        truths = [truth for truth in found if truth is not None]
        if len(truths) < len(found) or not sum(len(x.labels) for x in truths):
            return []
        return self._fill_detections(report, truths)

    def _fill_accuracy(self, report: Report) -> None:
        draws = draw(len(self.pairs))
        for place, network in enumerate(('float', 'quantized')):
            right = np.array([_is_right(pair[place]) for pair in self.pairs])
            values = draws @ right / len(right)
            report.scores.append(score(network, ACCURACY, values, len(right)))

    def _fill_detections(self, report: Report, truths: list[Truth]) -> list[str]:
        draws = draw(len(truths))
        both = []
        for place, network in enumerate(('float', 'quantized')):
            found = [
                detections_of(pair[place], truth)
                for pair, truth in zip(self.pairs, truths)
            ]
            values = mean_precision(found, truths, draws)
            report.scores.append(score(network, METRIC, values, len(truths)))
            both.append(found)
        threshold = best_threshold(both[0], truths)
        counts = dict(kept=0, lost=0, gained=0)
        differing = []
        for index, pair in enumerate(zip(*both)):
            before, after = (_hit_truths(item, threshold) for item in pair)
            counts['kept'] += len(before & after)
            counts['lost'] += len(before - after)
            counts['gained'] += len(after - before)
            false = [_misses(item, threshold) for item in pair]
            differing.append((len(before ^ after) + abs(false[0] - false[1]), index))
        report.pictures = dict(threshold=threshold, images=len(truths), **counts)
        shown = [index for differs, index in sorted(differing, reverse=True) if differs]
        return [
            picture
            for index in shown[:MOST_PICTURES]
            for picture in draw_picture(
                truths[index], [found[index] for found in both], threshold
            )
        ]


def _is_classified(sample: Any) -> bool:
    return hasattr(sample, 'pred_label') and hasattr(sample, 'gt_label')


def _is_right(sample: Any) -> float:
    return float(sample.pred_label.flatten()[0] in sample.gt_label.flatten())


def _hit_truths(found: Detections, threshold: float) -> set[int]:
    return set(found.hits[(found.scores >= threshold) & (found.hits >= 0)].tolist())


def _misses(found: Detections, threshold: float) -> int:
    return int(np.sum((found.scores >= threshold) & (found.hits < 0)))


def draw_picture(
    truth: Truth, both: Sequence[Detections], threshold: float
) -> list[str]:
    """An image twice, with the detections in float and quantized.

    Returns:
        List[str]: A ``data:`` address; nothing where the image cannot be read.
    """
    # A figure of matplotlib takes as long as testing the image.
    from PIL import Image, ImageDraw

    try:
        image = Image.open(truth.path).convert('RGB')
    except OSError:
        return []
    size = image.width
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    scale = image.width / size
    page = Image.new('RGB', (2 * image.width + GAP, image.height), 'white')
    for place, found in enumerate(both):
        panel = image.copy()
        canvas = ImageDraw.Draw(panel)
        for box in truth.boxes:
            canvas.rectangle(_corners(box * scale), outline=TRUTH, width=1)
        for box, number, hit in zip(found.boxes, found.scores, found.hits):
            if number >= threshold:
                color = HIT if hit >= 0 else MISS
                canvas.rectangle(_corners(box * scale), outline=color, width=2)
        page.paste(panel, (place * (image.width + GAP), 0))
    content = io.BytesIO()
    page.save(content, format='jpeg', quality=80)
    text = base64.b64encode(content.getvalue()).decode()
    return [f'data:image/jpeg;base64,{text}']


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

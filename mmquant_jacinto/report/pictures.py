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
HIT, MISS = '#2fae4d', '#e03131'

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    try:
        image = Image.open(truth.path).convert('RGB')
    except OSError:
        return []
    width, height = image.size
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    figure = Figure(
        figsize=(2 * image.width / 100, image.height / 100 + 0.2),
        dpi=100,
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    titles = ('float', 'quantized')
    for axes, found, title in zip(figure.subplots(1, 2), both, titles):
        axes.imshow(image, extent=(0, width, height, 0))
        axes.set_title(title, fontsize=8)
        axes.axis('off')
        for box in truth.boxes:
            _draw_box(axes, box, 'black', '--')
        for box, number, hit in zip(found.boxes, found.scores, found.hits):
            if number >= threshold:
                _draw_box(axes, box, HIT if hit >= 0 else MISS, '-')
    content = io.BytesIO()
    figure.savefig(content, format='jpeg', pil_kwargs=dict(quality=80))
    text = base64.b64encode(content.getvalue()).decode()
    return [f'data:image/jpeg;base64,{text}']


def _draw_box(axes: Any, box: np.ndarray, color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(value) for value in box)
    axes.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linestyle=style, lw=1.2
        )
    )

"""Detections against truths: hits, the best threshold, scores with their intervals.

A detection hits a truth of its class that no better one has hit, with an overlap of at
least a half, as Pascal VOC counts. What a test's own evaluator says may differ by its
rules; this is here because intervals take every image by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .content import Score
from .segmentations import Segmentation, read_segmentation

OVERLAP = 0.5
RESAMPLES = 500
METRIC = 'mAP50'
ACCURACY = 'accuracy'


class Detections(NamedTuple):
    """What a detector found in an image, best first.

    Args:
        boxes (ndarray): Corners, float32: (D, 4).
        scores (ndarray): (D,).
        labels (ndarray): (D,).
        hits (ndarray): Number of the truth that each hits; -1: none: (D,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    hits: np.ndarray


class Truth(NamedTuple):
    """What is in an image.

    Args:
        boxes (ndarray): Corners, float32: (T, 4).
        labels (ndarray): (T,).
        path (str): Of the image; empty where it is not known.
    """

    boxes: np.ndarray
    labels: np.ndarray
    path: str


class Prediction(NamedTuple):
    """What a detector makes of an image, and what is in it."""

    truth: Truth
    found: Detections


@dataclass(frozen=True)
class Seen:
    """An image that a run has loaded, with what is known of it.

    Args:
        batch (Any): As its dataloader yields it, of one image.
        predictions (Mapping[str, Any]): Network to what :func:`read_prediction` gives.
    """

    batch: Any
    predictions: Mapping[str, Any] = field(default_factory=dict)


def read_prediction(sample: Any) -> Prediction | Segmentation | float | None:
    """What a comparison needs of a data sample, and no map of it.

    Returns:
        Prediction | Segmentation | float, optional: Of a classified image whether it is
        right, 1.0 or 0.0. None without a truth, and of what is neither detected,
        segmented nor classified.
    """
    if hasattr(sample, 'pred_label') and hasattr(sample, 'gt_label'):
        return float(sample.pred_label.flatten()[0] in sample.gt_label.flatten())
    if hasattr(sample, 'pred_sem_seg'):
        return read_segmentation(sample)
    if not hasattr(sample, 'pred_instances') or 'bboxes' not in sample.pred_instances:
        return None
    boxes = sample.pred_instances.bboxes
    if getattr(boxes, 'tensor', boxes).shape[-1] != 4:
        return None  # rotated, or in space
    truth = truth_of(sample)
    return None if truth is None else Prediction(truth, detections_of(sample, truth))


def truth_of(sample: Any) -> Truth | None:
    """The truth in a data sample of MMDetection; None where there is none."""
    instances = getattr(sample, 'gt_instances', None)
    if instances is None or 'bboxes' not in instances or 'labels' not in instances:
        return None
    return Truth(
        _array(instances.bboxes).reshape(-1, 4),
        _array(instances.labels).astype(int),
        str(sample.get('img_path', '') or ''),
    )


def detections_of(sample: Any, truth: Truth) -> Detections:
    """The detections in a data sample, matched with the truth."""
    found = sample.pred_instances
    boxes, scores, labels = (
        _array(found[key]) for key in ('bboxes', 'scores', 'labels')
    )
    order = np.argsort(-scores, kind='stable')
    boxes, scores = boxes.reshape(-1, 4)[order], scores[order]
    labels = labels[order].astype(int)
    return Detections(boxes, scores, labels, match(boxes, labels, truth))


def _array(values: Any) -> np.ndarray:
    # Boxes may be a class of their own.
    values = getattr(values, 'tensor', values)
    return values.detach().cpu().float().numpy()


def match(boxes: np.ndarray, labels: np.ndarray, truth: Truth) -> np.ndarray:
    """Number of the truth that each detection hits, -1 for none: (D,)."""
    hits = np.full(len(boxes), -1)
    free = np.ones(len(truth.boxes), dtype=bool)
    overlaps = overlap(boxes, truth.boxes)
    for index, label in enumerate(labels):
        ours = np.where(free & (truth.labels == label), overlaps[index], 0.0)
        if len(ours) and ours.max() >= OVERLAP:
            hits[index] = ours.argmax()
            free[hits[index]] = False
    return hits


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersections over unions of boxes (D, 4) and (T, 4): (D, T)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - common
    return common / np.maximum(union, 1e-9)


def best_threshold(found: Sequence[Detections], truths: Sequence[Truth]) -> float:
    """The score above which detections have the best F1."""
    scores = np.concatenate([item.scores for item in found])
    hits = np.concatenate([item.hits >= 0 for item in found])
    total = sum(len(truth.boxes) for truth in truths)
    if not len(scores) or not hits.any():
        return 0.5
    order = np.argsort(-scores, kind='stable')
    count = np.arange(1, len(order) + 1)
    f1 = 2 * hits[order].cumsum() / (count + total)
    return float(scores[order][f1.argmax()])


def mean_precision(
    found: Sequence[Detections], truths: Sequence[Truth], draws: np.ndarray
) -> np.ndarray:
    """Mean over classes of average precision, of draws of images, from 0 to 1.

    Args:
        found (Sequence[Detections]): By image.
        truths (Sequence[Truth]): By image.
        draws (ndarray): How often each image is drawn: (B, I).

    Returns:
        ndarray: (B,).
    """
    image = np.concatenate([np.full(len(x.scores), i) for i, x in enumerate(found)])
    scores = np.concatenate([x.scores for x in found])
    labels = np.concatenate([x.labels for x in found])
    hits = np.concatenate([x.hits >= 0 for x in found])
    total, classes = np.zeros(len(draws)), np.zeros(len(draws))
    for label in np.unique(np.concatenate([x.labels for x in truths])):
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind='stable')]
        counts = np.array([np.sum(x.labels == label) for x in truths])
        number = draws @ counts
        weights = draws[:, image[own]] if len(own) else np.zeros((len(draws), 0))
        gained = weights * hits[own]
        precision = gained.cumsum(1) / np.maximum(weights.cumsum(1), 1)
        # Precision at a recall is the best at that recall or a higher one.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        total += (gained * best).sum(1) / np.maximum(number, 1)
        classes += number > 0
    return total / np.maximum(classes, 1)


def draw(images: int) -> np.ndarray:
    """All images once, then resamples of them, always the same: (B + 1, I)."""
    rng = np.random.default_rng(0)
    resamples = rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)
    return np.concatenate([np.ones((1, images), dtype=int), resamples])


def scores_of(
    metric: str, networks: Mapping[str, np.ndarray], images: int
) -> list[Score]:
    """Scores in percent, with their intervals.

    Args:
        metric (str): Its name.
        networks (Mapping[str, ndarray]): Of each, float first if it is there, the
            score and those of draws, the same ones for all.
        images (int): That were scored.
    """
    found = []
    for network, values in networks.items():
        low, high = np.percentile(100 * values[1:], [2.5, 97.5])
        score = Score(network, metric, 100 * float(values[0]), float(low), float(high))
        score.images = images
        if 'float' in networks and network != 'float':
            # Of the same images: both are better on those that are easy.
            lost = 100 * (networks['float'] - values)[1:]
            score.lost = [float(end) for end in np.percentile(lost, [2.5, 97.5])]
        found.append(score)
    return found

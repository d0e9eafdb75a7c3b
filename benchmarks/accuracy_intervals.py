"""How far the loss of a row would vary with other test images of the same kind.

The bootstrap over images: test images are drawn with replacement, and float and
quantized detections are evaluated on the same draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accuracy_rows import ROWS
from accuracy_runs import METRICS, Run, Setup
from mmengine.fileio import load

# in the precision of the overlaps, as MMDetection compares them
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).astype(np.float32)
RESAMPLES = 1000
CONFIDENCE = 0.95


class Matches(NamedTuple):
    """The detections of one class, in falling order of score.

    Attributes:
        image: Index of the image of each detection, (D,).
        hit: Whether it is the first to find a ground truth, by threshold, (T, D).
        counted: Whether it is not one of an ignored ground truth, (T, D).
        truths: Ground truths of each image that are not ignored, (I,).
    """

    image: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    truths: np.ndarray


def read_truths(config: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the ground truths of the test images of a config, by image.

    Args:
        config: A config with a ``test_dataloader``.
    """
    from mmengine.config import Config
    from mmengine.registry import DATASETS, init_default_scope

    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'pipeline': []})
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return {info['img_id']: info['instances'] for info in infos}


def match(
    samples: Sequence[dict[str, Any]],
    truths: dict[str, list[dict[str, Any]]],
    num_classes: int,
) -> list[Matches]:
    """Match detections with ground truths as Pascal VOC does, class by class.

    Args:
        samples: What ``DumpDetResults`` wrote.
        truths: From :func:`read_truths`.
        num_classes: The number of classes.
    """
    order = {image_id: index for index, image_id in enumerate(truths)}
    found: list[list[tuple]] = [[] for _ in range(num_classes)]
    counts = np.zeros((num_classes, len(order)), dtype=int)
    for sample in samples:
        index = order[sample['img_id']]
        instances = truths[sample['img_id']]
        predicted = sample['pred_instances']
        labels, scores, boxes = (
            np.asarray(predicted[key]) for key in ('labels', 'scores', 'bboxes')
        )
        for label in range(num_classes):
            mine = [item for item in instances if item['bbox_label'] == label]
            ignored = np.array([item['ignore_flag'] for item in mine], dtype=bool)
            counts[label, index] = np.sum(~ignored)
            falling = np.argsort(-scores[labels == label], kind='stable')
            own = boxes[labels == label][falling]
            hit, counted = match_image(own, mine, ignored)
            score = scores[labels == label][falling]
            found[label].append((np.full(len(own), index), score, hit, counted))
    result = []
    for label, parts in enumerate(found):
        image, score, hit, counted = (
            np.concatenate(part, axis=-1) for part in zip(*parts)
        )
        falling = np.argsort(-score, kind='stable')
        result.append(
            Matches(image[falling], hit[:, falling], counted[:, falling], counts[label])
        )
    return result


def match_image(
    boxes: np.ndarray, instances: list[dict[str, Any]], ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of a class in an image.

    Args:
        boxes: (D, 4), in falling order of score.
        instances: The ground truths of the class.
        ignored: Which of them are to be ignored.

    Returns:
        ``hit`` and ``counted`` of :class:`Matches`, (T, D).
    """
    shape = len(IOU_THRESHOLDS), len(boxes)
    hit, counted = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    if len(boxes) and instances:
        overlaps = overlap(boxes, np.array([item['bbox'] for item in instances]))
        nearest, best = overlaps.argmax(1), overlaps.max(1)
        for row, threshold in enumerate(IOU_THRESHOLDS):
            near = np.flatnonzero(best >= threshold)
            _, first = np.unique(nearest[near], return_index=True)
            hit[row, near[first]] = True
            counted[row, near] = ~ignored[nearest[near]]
        hit &= counted
    return hit, counted


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersections over unions of boxes (N, 4) and (M, 4): (N, M).

    Both corners belong to a box, as Pascal VOC has it.
    """
    boxes, others = boxes.astype(np.float32), others.astype(np.float32)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low + 1, 0, None).prod(-1)
    areas = [(part[:, 2:] - part[:, :2] + 1).prod(-1) for part in (boxes, others)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def average_precisions(
    matches: Sequence[Matches],
    weights: np.ndarray,
    recalls: np.ndarray | None = None,
) -> np.ndarray:
    """Return mAP by threshold: (B, T).

    Args:
        matches: From :func:`match`, of each class.
        weights: How often each image is drawn, (B, I).
        recalls: Where precision is read, rising from 0, as COCO has it; None: the
            area under it, as Pascal VOC has it.
    """
    total = np.zeros((len(weights), len(IOU_THRESHOLDS)))
    classes = np.zeros((len(weights), 1))
    for item in matches:
        truths = weights @ item.truths
        classes[:, 0] += truths > 0
        drawn = weights[:, item.image]
        seen = drawn.cumsum(1)
        for row in range(len(IOU_THRESHOLDS)):
            hit, counted = item.hit[row], item.counted[row]
            place = seen if counted.all() else (drawn * counted).cumsum(1)
            # Precision is highest where there are hits; recall changes only there.
            hits = drawn[:, hit]
            precision = hits.cumsum(1) / np.maximum(place[:, hit], 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            if recalls is None:
                share = hits / np.maximum(truths, 1)[:, None]
            else:
                recall = hits.cumsum(1) / np.maximum(truths, 1)[:, None]
                passed = np.searchsorted(recalls, recall, side='right')
                share = np.diff(passed, prepend=0, axis=1) / len(recalls)
            total[:, row] += (share * envelope).sum(1)
    return total / np.maximum(classes, 1)


def draw(num_images: int) -> np.ndarray:
    """Return how often each image is in each resample, (B, I); always the same."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), RESAMPLES)


def resampled_scores(
    predictions: Path, truths: dict[str, list[dict[str, Any]]], num_classes: int
) -> dict[str, np.ndarray]:
    """Return both metrics of a run on each resample: (B,).

    They are kept beside the predictions.

    Args:
        predictions: What ``DumpDetResults`` wrote.
        truths: From :func:`read_truths`.
        num_classes: The number of classes.
    """
    kept = predictions.with_name('resampled.npz')
    if not kept.exists() or kept.stat().st_mtime < predictions.stat().st_mtime:
        matches = match(load(str(predictions)), truths, num_classes)
        scores = average_precisions(matches, draw(len(truths)))
        part = kept.with_suffix('.part.npz')
        np.savez(part, mAP50=scores[:, 0], mAP=scores.mean(1))
        part.replace(kept)
    with np.load(kept) as content:
        return dict(content)


def lost_interval(
    start: np.ndarray, scores: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Return the bounds of the points lost, by the bootstrap's percentiles.

    Args:
        start: Scores of the float model, from 0 to 1, (B,).
        scores: Those of the row's seeds; their mean is what is lost.
    """
    lost = 100 * (start - np.mean(scores, axis=0))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(lost, [tail, 100 - tail])
    return float(low), float(high)


def intervals_of(
    setup: Setup, results: Sequence[Mapping[str, Any]], num_classes: int
) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """Return the interval of the points lost, by row of an architecture and metric.

    Args:
        setup: Says where the runs are.
        results: Which of them are finished.
        num_classes: The number of classes.
    """
    rows = {row.name: row for row in ROWS}
    found: dict[tuple[str, str], list[dict[str, np.ndarray]]] = {}
    for arch in dict.fromkeys(result['arch'] for result in results):
        truths = read_truths(setup.float_config(arch))
        for result in results:
            run = Run(setup, arch, rows[result['row']], result['seed'])
            if result['arch'] == arch and run.predictions.exists():
                scores = resampled_scores(run.predictions, truths, num_classes)
                found.setdefault((arch, result['row']), []).append(scores)
    return {
        (arch, row): {
            metric: lost_interval(
                found[arch, 'float'][0][metric], [score[metric] for score in scores]
            )
            for metric in METRICS
        }
        for (arch, row), scores in found.items()
        if (arch, 'float') in found and row != 'float'
    }

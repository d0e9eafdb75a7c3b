"""Scores as COCO has them, on few images: with what other draws of them would give."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accuracy_intervals import (
    IOU_THRESHOLDS,
    Matches,
    average_precisions,
    draw,
    lost_interval,
)
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

RECALLS = np.linspace(0, 1, 101)
# Float detections with a higher score are what quantized ones are compared with.
CONFIDENT = 0.3
# The lists that a head returns, by how many there are.
KINDS = {2: ('scores', 'boxes'), 3: ('scores', 'boxes', 'objectness')}
Samples = Sequence[Mapping[str, Any]]


def annotations_of(samples: Samples, categories: Sequence[int]) -> list[dict]:
    """Return detections as COCO has them.

    Args:
        samples: What ``DumpDetResults`` writes.
        categories: COCO's number of each label.
    """
    found = []
    for sample in samples:
        predicted = sample['pred_instances']
        parts = (np.asarray(predicted[key]) for key in ('bboxes', 'scores', 'labels'))
        for (x1, y1, x2, y2), score, label in zip(*parts):
            width, height = float(x2 - x1), float(y2 - y1)
            found.append(
                dict(
                    image_id=sample['img_id'],
                    category_id=categories[int(label)],
                    bbox=[float(x1), float(y1), width, height],
                    score=float(score),
                    area=width * height,
                    iscrowd=0,
                    # COCO's evaluation takes a truth of number 0 for none.
                    id=len(found) + 1,
                )
            )
    return found


def own_truths(samples: Samples, categories: Sequence[int]) -> dict[str, Any]:
    """Return a float detector's confident detections as COCO's ground truths."""
    return dict(
        images=[dict(id=sample['img_id']) for sample in samples],
        categories=[dict(id=number) for number in categories],
        annotations=[
            item
            for item in annotations_of(samples, categories)
            if item['score'] > CONFIDENT
        ],
    )


def score_error(before: Samples, after: Samples) -> float:
    """Return by how much scores of detections differ, in points of a hundred.

    The mean over all detections above :data:`CONFIDENT` on either side: to the score
    of what overlaps most of the same class on the other side, to zero where nothing
    overlaps by half. What a threshold of the user's does with a detection shows here
    before it shows in a mean of precisions, and on far fewer images.

    Args:
        before: Of the float detector, what ``DumpDetResults`` writes.
        after: Of the quantized one, of the same images in the same order.
    """
    errors = []
    for pair in zip(before, after):
        found = [sample['pred_instances'] for sample in pair]
        for ours, theirs in (found, found[::-1]):
            kept = ours['scores'] > CONFIDENT
            overlaps = bbox_overlaps(
                ours['bboxes'][kept].float(), theirs['bboxes'].float()
            )
            same = ours['labels'][kept][:, None] == theirs['labels'][None]
            # What overlaps nothing stands for what is not there.
            overlaps = torch.cat([overlaps * same, overlaps.new_zeros(len(same), 1)], 1)
            overlap, which = overlaps.max(1)
            scores = torch.cat([theirs['scores'], theirs['scores'].new_zeros(1)])[which]
            errors.append((ours['scores'][kept] - scores * (overlap >= 0.5)).abs())
    return 100 * torch.cat(errors).mean().item()


def coco_matches(
    truths: Mapping[str, Any], samples: Samples, categories: Sequence[int]
) -> list[Matches]:
    """Match detections with ground truths as COCO does, class by class.

    Args:
        truths: As in COCO's files: images, categories, annotations.
        samples: What ``DumpDetResults`` writes.
        categories: COCO's number of each label.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(truths)
        coco.createIndex()
        found = COCO()
        found.dataset = dict(truths, annotations=annotations_of(samples, categories))
        found.createIndex()
        evaluation = COCOeval(coco, found, 'bbox')
        evaluation.params.iouThrs = np.linspace(0.5, 0.95, len(IOU_THRESHOLDS))
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ['all']
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    images = evaluation.params.imgIds
    return [
        _joined(evaluation.evalImgs[start : start + len(images)])
        for start in range(0, len(evaluation.evalImgs), len(images))
    ]


def _joined(parts: Sequence[Mapping[str, Any] | None]) -> Matches:
    """The images of a class together; None is one that has nothing of it."""
    levels = len(IOU_THRESHOLDS)
    image, score = [np.zeros(0, dtype=int)], [np.zeros(0)]
    hit, counted = ([np.zeros((levels, 0), dtype=bool)] for _ in range(2))
    truths = np.zeros(len(parts), dtype=int)
    for index, part in enumerate(parts):
        if part is None:
            continue
        truths[index] = np.sum(np.asarray(part['gtIgnore']) == 0)
        score.append(np.asarray(part['dtScores'], dtype=float))
        image.append(np.full(len(score[-1]), index))
        ignored = np.asarray(part['dtIgnore'], dtype=bool).reshape(levels, -1)
        hit.append((np.asarray(part['dtMatches']).reshape(levels, -1) > 0) & ~ignored)
        counted.append(~ignored)
    falling = np.argsort(-np.concatenate(score), kind='mergesort')
    return Matches(
        np.concatenate(image)[falling],
        np.concatenate(hit, axis=1)[:, falling],
        np.concatenate(counted, axis=1)[:, falling],
        truths,
    )


def points(matches: Sequence[Matches], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return mAP50 and mAP 0.50:0.95, from 0 to 1, of each draw of images: (B,)."""
    scores = average_precisions(matches, weights, RECALLS)
    return dict(mAP50=scores[:, 0], mAP=scores.mean(1))


def score(matches: Sequence[Matches]) -> dict[str, float]:
    """Return mAP50 and mAP 0.50:0.95 in percent."""
    weights = np.ones((1, len(matches[0].truths)), dtype=int)
    found = points(matches, weights)
    return {metric: 100 * float(value[0]) for metric, value in found.items()}


def lost_intervals(
    start: Sequence[Matches], matches: Sequence[Matches], together: int = 1
) -> dict[str, tuple[float, float]]:
    """Return the intervals of what is lost against float, by metric, in points.

    Args:
        start: Of float.
        matches: Of the row, on the same images.
        together: So many images after each other are drawn as one: views of a
            photograph, which are no images of their own.
    """
    draws = draw(len(start[0].truths) // together).repeat(together, axis=1)
    first, second = points(start, draws), points(matches, draws)
    return {key: lost_interval(first[key], [second[key]]) for key in first}


def output_noise(
    reference: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the signal to noise of each output of a head in dB; least and median.

    Args:
        reference: Of float, by name, all images together.
        outputs: Of the quantized network.
    """
    ratios = {}
    for name, signal in reference.items():
        x, y = signal.double(), outputs[name].double()
        noise = float((x - y).square().sum())
        ratio = float(x.square().sum()) / noise if noise else math.inf
        ratios[name] = round(10 * math.log10(ratio), 2) if ratio else -math.inf
    return dict(
        least=min(ratios.values()),
        median=statistics.median(ratios.values()),
        outputs=ratios,
    )

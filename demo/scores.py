"""What the models of the demo detect, held against the truth of the test set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.fileio import load

from mmquant_jacinto.report.detections import (
    METRIC,
    Detections,
    Truth,
    best_threshold,
    detections_of,
    draw,
    mean_precision,
    scores_of,
)


def read_truths(config: str) -> dict[str, Truth]:
    """What is in the images of a config's test set, by the path of the image."""
    register_all_modules()
    dataset = DATASETS.build(Config.fromfile(config).test_dataloader.dataset)
    found = {}
    for info in map(dataset.get_data_info, range(len(dataset))):
        known = [item for item in info['instances'] if not item['ignore_flag']]
        boxes = np.array([item['bbox'] for item in known], np.float32).reshape(-1, 4)
        labels = np.array([item['bbox_label'] for item in known], int)
        found[info['img_path']] = Truth(boxes, labels, info['img_path'])
    return found


def read_detections(path: Path, truths: dict[str, Truth]) -> list[Detections]:
    """What ``tools/test.py --out`` wrote, in the order of the truths."""
    samples = {sample['img_path']: sample for sample in load(str(path))}
    return [
        detections_of(SimpleNamespace(**samples[image]), truth)
        for image, truth in truths.items()
    ]


def find_interval(found: list[Detections], truths: list[Truth]) -> list[float]:
    """The 95 % interval of mAP50, from 0 to 1, by the bootstrap over images."""
    values = mean_precision(found, truths, draw(len(truths)))
    (scored,) = scores_of(METRIC, {'': values}, len(truths))
    return [scored.low / 100, scored.high / 100]


def choose_images(
    models: list[list[Detections]], truths: list[Truth], count: int
) -> tuple[list[int], float]:
    """The images in which models differ most, and from which score on.

    Args:
        models: What each found in each image, the float model first.
        truths: What is there.
        count: How many images to choose.

    Returns:
        Numbers of images, and the score of the float model's best F1.
    """
    threshold = best_threshold(models[0], truths)
    hits = [
        [set(found.hits[found.scores >= threshold].tolist()) for found in model]
        for model in models
    ]
    differences = [
        len(set.union(*sets) - set.intersection(*sets)) for sets in zip(*hits)
    ]
    order = np.argsort(differences, kind='stable')[::-1]
    return sorted(order[:count].tolist()), threshold

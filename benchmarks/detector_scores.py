"""Scores of a float detector whose network another library has quantized.

The network is what a library quantizes: backbone, neck and the head's layers, images
in and raw outputs out. Everything behind it (decoding, suppression, the metric) is the
detector's own, for every library alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import DATASETS, init_default_scope
from pretrained_scores import coco_matches, score
from torch import Tensor, nn

METRICS = ('mAP50', 'mAP')
# Images (N, C, H, W) to the head's raw outputs, one kind after the other (scores of
# all levels, boxes of all levels, objectness where there is one).
Network = Callable[[Tensor], 'list[Tensor]']


class FloatNetwork(nn.Module):
    """A single-stage detector without its postprocessing.

    Args:
        detector (nn.Module): With ``backbone``, ``neck`` and ``bbox_head``.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.neck = detector.neck
        self.bbox_head = detector.bbox_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Runs the network.

        Args:
            images (Tensor): Normalized, (N, C, H, W), float32.

        Returns:
            Tuple[Tensor, ...]: Scores of each level, then box deltas of each
            level, then whatever else the head gives, (N, anchors * channels, h, w).
        """
        return flat(self.bbox_head(self.neck(self.backbone(images))))


def flat(lists: Iterable[Iterable[Tensor]]) -> tuple[Tensor, ...]:
    """A head's outputs in one row, kind after kind."""
    return tuple(output for levels in lists for output in levels)


@contextmanager
def in_place(
    detector: nn.Module, network: Network | None, kinds: int = 2
) -> Iterator[nn.Module]:
    """Lets a network give the outputs of the detector's head.

    Args:
        detector (nn.Module): A single-stage detector.
        network (Callable, optional): Called on one image at a time, (1, C, H, W);
            has no module of the detector in it. None: the detector's own.
        kinds (int): How many lists of outputs the head gives.

    Yields:
        nn.Module: The detector.
    """
    if network is None:
        yield detector
        return

    def forward(images: Tensor) -> tuple[list[Tensor], ...]:
        single = [list(network(images[i : i + 1])) for i in range(len(images))]
        outputs = [torch.cat(levels) for levels in zip(*single)]
        levels = len(outputs) // kinds
        return tuple(outputs[i : i + levels] for i in range(0, len(outputs), levels))

    detector.extract_feat = lambda images: images
    detector.bbox_head.forward = forward
    try:
        yield detector
    finally:
        del detector.extract_feat, detector.bbox_head.forward


class CocoPoints(BaseMetric):
    """COCO's scores, of which MMDetection's metric keeps three digits.

    Args:
        dataset (Dataset): With the ground truths.
    """

    def __init__(self, dataset: Any) -> None:
        super().__init__(prefix='coco_points')
        self.truths = json.loads(Path(dataset.ann_file).read_text())
        self.categories = dataset.cat_ids

    def process(self, data_batch: Any, data_samples: Iterable[dict]) -> None:
        """Keeps detections."""
        for sample in data_samples:
            found = {key: x.cpu() for key, x in sample['pred_instances'].items()}
            self.results.append(dict(img_id=sample['img_id'], pred_instances=found))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """mAP50 and mAP in points."""
        seen = {sample['img_id'] for sample in results}
        parts = dict(images='id', annotations='image_id')
        truths = dict(
            self.truths,
            **{
                name: [item for item in self.truths[name] if item[key] in seen]
                for name, key in parts.items()
            },
        )
        return score(coco_matches(truths, results, self.categories))


class DetectorTest:
    """The test images of a config, preprocessed once, and its evaluator.

    Args:
        cfg (Config): With ``test_dataloader`` and ``test_evaluator``.
        detector (nn.Module): Whose ``data_preprocessor`` is used.
        num_images (int, optional): Only the first so many.
    """

    def __init__(
        self, cfg: Config, detector: nn.Module, num_images: int | None = None
    ) -> None:
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        count = min(num_images or len(dataset), len(dataset))
        self.batches = [
            detector.data_preprocessor(pseudo_collate([dataset[i]]), False)
            for i in range(count)
        ]
        metric = cfg.test_evaluator
        if isinstance(metric, dict) and metric['type'] == 'CocoMetric':
            metric = CocoPoints(dataset)
        self.evaluator = Evaluator(metric)
        self.kinds = 0
        self.evaluator.dataset_meta = dataset.metainfo

    def score(self, detector: nn.Module) -> tuple[dict[str, float], list[list[Tensor]]]:
        """Tests a detector.

        Args:
            detector (nn.Module): In evaluation mode.

        Returns:
            Tuple[Dict[str, float], List[List[Tensor]]]: The metrics, and for each
            image the raw outputs of the head, kind after kind; ``kinds`` of them.
        """
        raw: list[list[Tensor]] = []

        def keep(module: nn.Module, args: Any, lists: Any) -> None:
            self.kinds = len(lists)
            raw.append([output.float() for output in flat(lists)])

        handle = detector.bbox_head.register_forward_hook(keep)
        try:
            with torch.no_grad():
                for batch in self.batches:
                    results = detector.predict(batch['inputs'], batch['data_samples'])
                    self.evaluator.process(data_samples=results)
        finally:
            handle.remove()
        return self.evaluator.evaluate(len(self.batches)), raw


def signal_to_noise(
    reference: Iterable[list[Tensor]],
    outputs: Iterable[list[Tensor]],
    kinds: int = 2,
) -> tuple[float, ...]:
    """How near quantized outputs are to those of float.

    Args:
        reference (Iterable[List[Tensor]]): Of float, by image.
        outputs (Iterable[List[Tensor]]): Of the quantized network.
        kinds (int): How many lists of outputs the head gives.

    Returns:
        Tuple[float, ...]: Decibels of the scores, of the boxes and of what else there
        is: ten times the logarithm of the ratio of squares, all images and levels
        together.
    """
    signal, noise = [0.0] * kinds, [0.0] * kinds
    for floats, quantized in zip(reference, outputs):
        for index, (x, y) in enumerate(zip(floats, quantized)):
            kind = index // (len(floats) // kinds)
            signal[kind] += float(x.double().square().sum())
            noise[kind] += float((x.double() - y.double()).square().sum())
    return tuple(
        10 * math.log10(s / n) if n else math.inf for s, n in zip(signal, noise)
    )


def map_scores(metrics: dict[str, Any]) -> dict[str, float]:
    """mAP50 and mAP of IoU 0.50 to 0.95 in points, out of what a metric gives."""
    if 'coco_points/mAP' in metrics:
        return {name: float(metrics[f'coco_points/{name}']) for name in METRICS}
    return dict(
        mAP50=100 * float(metrics['pascal_voc/mAP']),
        mAP=100 * float(metrics['coco_style/mAP']),
    )

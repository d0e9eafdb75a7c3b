"""Scores of a float detector whose network another library has quantized.

The network is what a library quantizes: backbone, neck and the head's layers, images
in and raw outputs out. Everything behind it (decoding, suppression, the metric) is the
detector's own, for every library alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn

# Images (N, C, H, W) to the head's raw outputs, classes of all levels before boxes.
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
            level, (N, anchors * channels, h, w).
        """
        scores, boxes = self.bbox_head(self.neck(self.backbone(images)))
        return (*scores, *boxes)


@contextmanager
def in_place(detector: nn.Module, network: Network | None) -> Iterator[nn.Module]:
    """Lets a network give the outputs of the detector's head.

    Args:
        detector (nn.Module): A single-stage detector.
        network (Callable, optional): Called on one image at a time, (1, C, H, W);
            has no module of the detector in it. None: the detector's own.

    Yields:
        nn.Module: The detector.
    """
    if network is None:
        yield detector
        return

    def forward(images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        single = [list(network(images[i : i + 1])) for i in range(len(images))]
        outputs = [torch.cat(levels) for levels in zip(*single)]
        middle = len(outputs) // 2
        return outputs[:middle], outputs[middle:]

    detector.extract_feat = lambda images: images
    detector.bbox_head.forward = forward
    try:
        yield detector
    finally:
        del detector.extract_feat, detector.bbox_head.forward


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
        self.evaluator = Evaluator(cfg.test_evaluator)
        self.evaluator.dataset_meta = dataset.metainfo

    def score(self, detector: nn.Module) -> tuple[dict[str, float], list[list[Tensor]]]:
        """Tests a detector.

        Args:
            detector (nn.Module): In evaluation mode.

        Returns:
            Tuple[Dict[str, float], List[List[Tensor]]]: The metrics, and for each
            image the raw outputs of the head, scores before boxes.
        """
        raw: list[list[Tensor]] = []
        handle = detector.bbox_head.register_forward_hook(
            lambda module, args, out: raw.append(
                [x.float() for x in (*out[0], *out[1])]
            )
        )
        try:
            with torch.no_grad():
                for batch in self.batches:
                    results = detector.predict(batch['inputs'], batch['data_samples'])
                    self.evaluator.process(data_samples=results)
        finally:
            handle.remove()
        return self.evaluator.evaluate(len(self.batches)), raw


def signal_to_noise(
    reference: Iterable[list[Tensor]], outputs: Iterable[list[Tensor]]
) -> tuple[float, float]:
    """How near quantized outputs are to those of float.

    Args:
        reference (Iterable[List[Tensor]]): Of float, by image.
        outputs (Iterable[List[Tensor]]): Of the quantized network.

    Returns:
        Tuple[float, float]: Decibels of the scores, and of the boxes: ten times the
        logarithm of the ratio of squares, all images and levels together.
    """
    signal, noise = [0.0, 0.0], [0.0, 0.0]
    for floats, quantized in zip(reference, outputs):
        for index, (x, y) in enumerate(zip(floats, quantized)):
            kind = int(index >= len(floats) // 2)
            signal[kind] += float(x.double().square().sum())
            noise[kind] += float((x.double() - y.double()).square().sum())
    scores, boxes = (
        10 * math.log10(s / n) if n else math.inf for s, n in zip(signal, noise)
    )
    return scores, boxes


def map_scores(metrics: dict[str, Any]) -> dict[str, float]:
    """mAP50 and mAP of IoU 0.50 to 0.95 in points, out of what VOCMetric gives."""
    return dict(
        mAP50=100 * float(metrics['pascal_voc/mAP']),
        mAP=100 * float(metrics['coco_style/mAP']),
    )

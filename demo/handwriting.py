"""Network and data of demo/tutorial.ipynb: handwritten digits of scikit-learn."""

from __future__ import annotations

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINED = 1200  # of 1797 images


@DATASETS.register_module()
class Handwriting(torch.utils.data.Dataset):
    """Images (1, 16, 16) from 0 to 1, and their labels.

    Args:
        test (bool): Whether those that are not trained on. Defaults to False.
        pipeline (list): Transforms; none is needed.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(self, test: bool = False, pipeline: tuple = ()) -> None:
        data = load_digits()
        part = slice(TRAINED, None) if test else slice(TRAINED)
        images = torch.from_numpy(data.images[part]).float()[:, None] / 16
        self.images = nn.functional.interpolate(images, scale_factor=2.0)
        self.labels = torch.from_numpy(data.target[part])
        self.metainfo, self.pipeline = self.METAINFO, list(pipeline)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=self.images[index], labels=self.labels[index])


class Features(nn.Module):
    """Three convolutions, one with a shortcut: (N, 1, 16, 16) to (N, 32, 4, 4)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = self._layer(1, channels, 2)
        self.first = self._layer(channels, channels, 2)
        self.second = self._layer(channels, channels, 1)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        return x + self.second(x)


@MODELS.register_module()
class Reader(BaseModel):
    """Reads a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(
        self, inputs: Tensor, labels: Tensor, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        scores = self.head(self.features(inputs).flatten(1))
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(scores, labels))
        return [dict(scores=row, label=label) for row, label in zip(scores, labels)]


@METRICS.register_module()
class ShareRead(BaseMetric):
    """Percentage of digits that are read right."""

    def process(self, data_batch: dict, data_samples: list) -> None:
        for item in data_samples:
            self.results.append(int(item['scores'].argmax() == item['label']))

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        return dict(read=100 * sum(results) / len(results))

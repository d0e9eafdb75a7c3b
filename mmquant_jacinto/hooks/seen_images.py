"""Images that a test or a validation has seen, kept for its report."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..report.build import split_batch
from ..report.detections import Seen, read_prediction


class SeenImages:
    """Some of the images that a loop runs on, with what is predicted of them.

    They need not be loaded again, nor be predicted again by the network that ran. What
    cannot be read of them is left out: no run ends for its report.

    Args:
        network (str): ``'quantized'`` or ``'file'``.
        count (int): Images at most.
    """

    def __init__(self, network: str, count: int) -> None:
        self.network, self.count = network, count
        self.images: list[Seen] = []
        self.total = 0  # images that the loop has run on
        self._stride = 1
        self._pending: list[Any] = []

    def begin(self, loader: Any) -> None:
        """A pass over a dataloader starts."""
        self.images, self.total, self._pending = [], 0, []
        images = len(loader) * (getattr(loader, 'batch_size', None) or 1)
        self._stride = max(1, -(-images // self.count))

    def before(self, index: int, batch: Any) -> None:
        """A batch is about to be run on: a preprocessor may change it in place."""
        self._pending = []
        if index % self._stride == 0 and len(self.images) < self.count:
            left = self.count - len(self.images)
            with suppress(Exception):
                self._pending = copy.deepcopy(split_batch(batch, left))

    def after(self, outputs: Sequence[Any]) -> None:
        """What was predicted of the batch: a data sample for each image."""
        self.total += len(outputs)
        for batch, sample in zip(self._pending, outputs):
            with suppress(Exception):
                predictions = {self.network: read_prediction(sample)}
                self.images.append(Seen(batch, predictions))
        self._pending = []

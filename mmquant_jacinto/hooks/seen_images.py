"""Images that a test or a validation has seen, kept for its report."""

import copy
from contextlib import suppress
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ..report.build import split_batch
from ..report.detections import Seen, read_prediction

MOST_BYTES = 2**28  # of all images together: films are large
WITHOUT = 8  # images that are kept to measure on, where no prediction is compared


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
        self._stride, self._room = 1, MOST_BYTES
        self._pending: list[Any] = []

    def begin(self, loop: Any) -> None:
        """A pass of a loop of MMEngine starts."""
        self.images, self.total, self._pending = [], 0, []
        self._stride, self._room = 1, MOST_BYTES
        with suppress(Exception):
            loader = loop.dataloader
            images = len(loader) * (loader.batch_size or 1)
            self._stride = max(1, -(-images // self.count))

    def before(self, index: int, batch: Any) -> None:
        """A batch is about to be run on: a preprocessor may change it in place."""
        self._pending = []
        left = self.count - len(self.images)
        if index % self._stride or left <= 0 or self._room <= 0:
            return
        with suppress(Exception):
            self._pending = copy.deepcopy(split_batch(batch, left))
            self._room -= bytes_of(self._pending)

    def after(self, outputs: Any) -> None:
        """What was predicted of the batch: a data sample for each image."""
        pending, self._pending = self._pending, []
        with suppress(Exception):
            self.total += len(outputs)
            for batch, sample in zip(pending, outputs):
                found = read_prediction(sample)
                if found is not None or len(self.images) < WITHOUT:
                    self.images.append(Seen(batch, {self.network: found}))


class SeenImagesHook(Hook):
    """Keeps images of a validation or a test; when it begins is for others to say.

    Args:
        network (str): See :class:`SeenImages`.
        count (int): Images at most.
    """

    def __init__(self, network: str, count: int) -> None:
        self._seen = SeenImages(network, count)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Keeps some of the images."""
        self._seen.before(batch_idx, data_batch)

    before_test_iter = before_val_iter

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Keeps what was predicted of them."""
        self._seen.after(outputs)

    after_test_iter = after_val_iter


def bytes_of(batches: Any) -> int:
    """Of the tensors in batches."""
    leaves = tree_flatten(batches)[0]
    return sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))

"""The images that a file is made for and proved on: those of a config's test."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import nn

from ...errors import QuantizeError
from ...wrappers.quant_module import QuantModule
from ...wrappers.random_image import random_image

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')


class TestImages:
    """The images of a config's test set, brought to the size of the file.

    Args:
        cfg (Config): Its ``test_dataloader`` is used.
        shape (Tuple[int, int], optional): Height and width. None: those of the
            pipeline's ``Resize``.
        divisor (int): What the model pads its images to a multiple of.
        folder (str, optional): Take the images of this folder instead.

    Raises:
        QuantizeError: If the divisor does not divide the shape.
    """

    __test__ = False  # no test, whatever pytest thinks

    def __init__(
        self,
        cfg: Config,
        shape: tuple[int, int] | None = None,
        divisor: int = 1,
        folder: str | None = None,
    ) -> None:
        self.cfg = copy.deepcopy(cfg)
        self.folder = folder
        loader = self.cfg.get('test_dataloader')
        self.dataset_cfg = None if loader is None else innermost_dataset(loader.dataset)
        height, width = shape if shape else self._default_shape(divisor)
        self.shape = height, width
        if any(size % divisor for size in self.shape):
            fitting = tuple(-(-size // divisor) * divisor for size in self.shape)
            raise QuantizeError(
                f'--shape {self.shape[0]} {self.shape[1]}: the model pads its images '
                f'to multiples of {divisor}; use --shape {fitting[0]} {fitting[1]}'
            )
        if self.dataset_cfg is not None:
            fit_pipeline(self.dataset_cfg.pipeline, self.shape)

    def _default_shape(self, divisor: int) -> tuple[int, int]:
        for transform in self.dataset_cfg.pipeline if self.dataset_cfg else ():
            scale = transform.get('scale')
            if _is(transform, 'Resize') and isinstance(scale, (tuple, list)):
                width, height = scale
                rows, columns = (-(-n // divisor) * divisor for n in (height, width))
                return rows, columns
        raise QuantizeError(
            'the size of the images does not follow from test_dataloader; give '
            '--shape HEIGHT WIDTH'
        )

    def batches(self, count: int) -> Iterator[dict]:
        """Up to ``count`` images, one a batch, as a dataloader yields them.

        Raises:
            QuantizeError: If the images are not there.
        """
        if self.folder is not None:
            yield from self._from_folder(count)
            return
        try:
            loader = copy.deepcopy(self.cfg.test_dataloader)
            loader.update(batch_size=1, num_workers=0, persistent_workers=False)
            loader = Runner.build_dataloader(loader, seed=0)
        except (OSError, KeyError, AttributeError) as error:
            raise QuantizeError(
                f'the images of test_dataloader cannot be read ({error}); give a '
                'folder of images with --images, or --verify 0 to export without proof'
            ) from None
        self.dataset = loader.dataset
        for index, batch in enumerate(loader):
            if index == count:
                return
            yield batch

    def _from_folder(self, count: int) -> Iterator[dict]:
        paths = sorted(
            path
            for path in Path(self.folder).glob('*')
            if path.suffix.lower() in IMAGE_SUFFIXES
        )[:count]
        if not paths:
            raise QuantizeError(f'--images {self.folder}: there are no images in it')
        kept = [t for t in self.dataset_cfg.pipeline if not _is(t, 'LoadAnnotations')]
        pipeline = Compose(kept)
        for index, path in enumerate(paths):
            item = pipeline(dict(img_path=str(path), img_id=index))
            yield pseudo_collate([item])

    def evaluator(self) -> Evaluator:
        """A new evaluator of the test set."""
        evaluator = Evaluator(copy.deepcopy(self.cfg.test_evaluator))
        evaluator.dataset_meta = self.dataset.metainfo
        return evaluator


def fit_pipeline(pipeline: list, shape: tuple[int, int]) -> None:
    """Lets a test pipeline give images of one size, in place.

    Args:
        pipeline (List[dict]): Its ``Resize`` no longer keeps the aspect ratio, where
            it did, because a file takes images of one size.
        shape (Tuple[int, int]): Height and width.
    """
    for transform in pipeline:
        if _is(transform, 'Resize'):
            transform.update(scale=(shape[1], shape[0]), keep_ratio=False)
            transform.pop('scale_factor', None)


def _is(transform: dict, name: str) -> bool:
    kind = transform.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return kind.rpartition('.')[2] == name


def innermost_dataset(dataset: Any) -> Any:
    """The config of the dataset that has the pipeline, out of its wrappers."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


def pad_divisor(model: nn.Module) -> int:
    """What a model's preprocessor pads images to a multiple of."""
    divisor = getattr(
        getattr(model, 'data_preprocessor', None), 'pad_size_divisor', None
    )
    return divisor or 1


def random_batch(wrapper: QuantModule, shape: tuple[int, int]) -> Any:
    """A batch of one random image, where no other is at hand."""
    return random_image(wrapper, shape)

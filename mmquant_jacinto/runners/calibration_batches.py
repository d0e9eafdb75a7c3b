"""Images to prepare and to calibrate on, out of a runner's config."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..config.sections import Calibration
from ..errors import QuantizeError
from .seen_datasets import dataset_seen_through, find_pipeline, take_unlabelled
from .train_batches import equalize_batches

ATTEMPTS = 8


@contextmanager
def readable_images() -> Iterator[None]:
    """Says of any error in a pipeline that an image could not be read."""
    try:
        yield
    except Exception as error:  # noqa: B902 - a pipeline raises any
        raise QuantizeError(
            'an image of the calibration set could not be read '
            f'({type(error).__name__}: {error}); check '
            'train_dataloader or quantize.calibration.dataloader'
        ) from error


class Batches:
    """The first batches of a dataloader, anew each time.

    Args:
        loader (DataLoader): Where from.
        size (int): How many.
    """

    def __init__(self, loader: DataLoader, size: int) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for _ in range(self.size):
            with readable_images():
                batch = next(batches)
            yield batch


def first_batch(dataloader: DataLoader, key: str) -> Any:
    """A batch of the first image that can be loaded, without any workers.

    Args:
        dataloader (DataLoader): Where from.
        key (str): Its config key, for the error.

    Returns:
        Any: A batch of one, collated as the loader would.

    Raises:
        QuantizeError: If there are no images, or none can be read.
    """
    dataset: Any = dataloader.dataset
    if len(dataset) == 0:
        raise QuantizeError(
            f'{key} has no images; check its ann_file, data_prefix and filter_cfg'
        )
    error: Optional[Exception] = None
    for index in range(min(ATTEMPTS, len(dataset))):
        try:
            return dataloader.collate_fn([dataset[index]])
        except Exception as caught:  # noqa: B902 - a pipeline raises anything
            error = caught
    raise QuantizeError(
        f'none of the first {ATTEMPTS} images of {key} could be read '
        f'({type(error).__name__}: {error}); check its data_root, '
        'data_prefix and pipeline'
    )


@contextmanager
def present_files(keys: str) -> Iterator[None]:
    """Building of what reads files.

    Args:
        keys (str): Of the config, for the error.

    Raises:
        QuantizeError: If a file is not there, or cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise QuantizeError(
            f'{keys}: {error.filename or "a file"} cannot be read '
            f'({error.strerror or error}); check data_root and ann_file'
        ) from error


def calibration_dataloader(runner: Runner, config: Calibration) -> DataLoader:
    """Builds the loader of ``quantize.calibration``.

    By default the training images, seen through the pipeline of validation
    (or test), in its batches: what is calibrated is what will be deployed. They come
    in one random order, the same in each pass: that of ``randomness.seed``, of 0 where
    the config has none. So the seed also decides which ``num_images`` are taken.

    Raises:
        QuantizeError: If there is no pipeline to see the images through, or
            no image.
    """
    given = config.dataloader
    if given is None:
        given = _default_dataloader(runner)
    key = (
        'train_dataloader'
        if config.dataloader is None
        else 'quantize.calibration.dataloader'
    )
    seed = (runner.cfg.get('randomness') or {}).get('seed') or 0
    loader = runner.build_dataloader(given, seed=seed)
    if config.dataloader is None:
        take_unlabelled(loader.dataset)
    if len(loader.dataset) == 0:
        raise QuantizeError(
            f'the calibration set is empty: {key} has no images; check its '
            'ann_file, data_prefix and filter_cfg'
        )
    if isinstance(loader.sampler, InfiniteSampler):
        raise QuantizeError(
            f'{key}.sampler is an InfiniteSampler, and calibration sees the same '
            "images several times; use dict(type='DefaultSampler', shuffle=True)"
        )
    equalize_batches(loader, key)
    return loader


def count_batches(loader: DataLoader, config: Calibration) -> int:
    """Batches of one pass of calibration, in this process."""
    if config.iterations is not None:
        return min(config.iterations, len(loader))
    step = (loader.batch_size or 1) * get_world_size()
    return min(math.ceil(config.num_images / step), len(loader))


def _default_dataloader(runner: Any) -> dict:
    """The training images as validation sees them: pipeline, batches and collation.

    A pipeline's results fit the batches that they are made for: without random crops
    images have several sizes, and a library's own collation takes its own training's.
    """
    train = runner._train_dataloader
    inference = runner._val_dataloader or runner._test_dataloader
    if not inference:
        raise QuantizeError(
            'calibration needs images without random augmentation, and there '
            'is no val_dataloader or test_dataloader to take a pipeline '
            'from; set quantize.calibration.dataloader'
        )
    return dict(
        batch_size=_setting(inference, 'batch_size', 1) or 1,
        num_workers=_setting(train, 'num_workers', 0),
        dataset=dataset_seen_through(
            _setting(train, 'dataset'), find_pipeline(_setting(inference, 'dataset'))
        ),
        sampler=dict(type='DefaultSampler', shuffle=True),
        **{
            name: _setting(loader, name)
            for name, loader in (('collate_fn', inference), ('pin_memory', train))
            if not isinstance(loader, dict) or name in loader
        },
    )


def _setting(loader: Any, name: str, default: Any = None) -> Any:
    """A setting of a loader, or of a loader's config."""
    if isinstance(loader, dict):
        return loader.get(name, default)
    return getattr(loader, name, default)

"""Images to prepare and to calibrate on, out of a runner's config."""

import copy
import math
from typing import Any, Optional

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..config.sections import Calibration
from ..errors import QuantizeError

ATTEMPTS = 8


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


def calibration_dataloader(runner: Runner, config: Calibration) -> DataLoader:
    """Builds the loader of ``quantize.calibration``.

    By default the training images, seen through the pipeline of validation
    (or test): what is calibrated is what will be deployed. Images come in one
    random order, the same in each pass: that of ``randomness.seed``, of 0 where the
    config has none. So the seed also decides which ``num_images`` of them are taken.

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
    return loader


def count_batches(loader: DataLoader, config: Calibration) -> int:
    """Batches of one pass of calibration, in this process."""
    if config.iterations is not None:
        return min(config.iterations, len(loader))
    step = (loader.batch_size or 1) * get_world_size()
    return min(math.ceil(config.num_images / step), len(loader))


def _default_dataloader(runner: Runner) -> dict:
    train = copy.deepcopy(dict(runner.cfg.train_dataloader))
    inference = runner.cfg.get('val_dataloader') or runner.cfg.get('test_dataloader')
    if not inference:
        raise QuantizeError(
            'calibration needs images without random augmentation, and there '
            'is no val_dataloader or test_dataloader to take a pipeline '
            'from; set quantize.calibration.dataloader'
        )
    dataset = _base_dataset(train['dataset'])
    _set_pipeline(dataset, _find_pipeline(inference['dataset']))
    return dict(
        batch_size=train.get('batch_size', 1),
        num_workers=train.get('num_workers', 0),
        dataset=dataset,
        sampler=dict(type='DefaultSampler', shuffle=True),
        **{name: train[name] for name in ('collate_fn', 'pin_memory') if name in train},
    )


def _base_dataset(dataset: dict) -> dict:
    """The data set below wrappers that repeat, balance or mix images."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _find_pipeline(dataset: dict) -> list:
    dataset = _base_dataset(dataset)
    if 'pipeline' not in dataset and dataset.get('datasets'):
        return _find_pipeline(dataset['datasets'][0])
    return dataset['pipeline']


def _set_pipeline(dataset: dict, pipeline: list) -> None:
    if dataset.get('datasets'):
        for index, part in enumerate(dataset['datasets']):
            dataset['datasets'][index] = _base_dataset(part)
            _set_pipeline(dataset['datasets'][index], pipeline)
        dataset.pop('pipeline', None)
    else:
        dataset['pipeline'] = copy.deepcopy(pipeline)

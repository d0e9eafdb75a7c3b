"""A data set seen through another's pipeline: as configs, or as objects."""

import copy
from typing import Any

from mmengine.dataset import Compose
from mmengine.logging import print_log
from torch.utils.data import ConcatDataset, Subset

from ..errors import QuantizeError


def find_pipeline(dataset: Any) -> Any:
    """The pipeline of a data set, or of the first within it.

    Args:
        dataset (Any): Its config, or the data set.

    Returns:
        Any: A list of transforms, or what composes them; None where a data set that
        is given as an object has none.

    Raises:
        QuantizeError: If a config has none.
    """
    dataset = _base(dataset)
    parts = _part(dataset, 'datasets')
    if _part(dataset, 'pipeline') is None and parts:
        return find_pipeline(parts[0])
    pipeline = _part(dataset, 'pipeline')
    if pipeline is None and isinstance(dataset, dict):
        raise QuantizeError(
            f'the data set {dataset.get("type")!r} of val_dataloader (or else of '
            'test_dataloader) has no pipeline to see training images through; set '
            'quantize.calibration.dataloader'
        )
    return pipeline


def dataset_seen_through(dataset: Any, pipeline: Any) -> Any:
    """A data set without what repeats, balances or mixes images, and by a pipeline.

    Args:
        dataset (Any): Its config, or the data set; left as it is.
        pipeline (Any): Of :func:`find_pipeline`.

    Returns:
        Any: A config or a data set, as it was given.
    """
    if isinstance(dataset, dict):
        return _config_seen_through(copy.deepcopy(dict(_base(dataset))), pipeline)
    if isinstance(dataset, Subset):
        # Its indices are those of the data set within.
        return Subset(dataset_seen_through(dataset.dataset, pipeline), dataset.indices)
    parts = _part(_base(dataset), 'datasets')
    if hasattr(_base(dataset), 'pipeline') or parts:
        dataset = _base(dataset)
    if parts:
        return ConcatDataset([dataset_seen_through(part, pipeline) for part in parts])
    if not hasattr(dataset, 'pipeline') or pipeline is None:
        print_log(
            f'Calibration sees the images of {type(dataset).__name__} as training '
            'does: it has no pipeline that validation has too. Set '
            'quantize.calibration.dataloader for others.',
            'current',
            30,
        )
        return dataset
    dataset = copy.copy(dataset)
    dataset.pipeline = Compose(pipeline) if isinstance(pipeline, list) else pipeline
    return dataset


def take_unlabelled(dataset: Any) -> None:
    """Lets a data set give images that its pipeline has not labelled.

    MMDetection3D's drop an image without boxes by what the pipeline returns, and fail
    where it returns none, as that of a test does.

    Args:
        dataset (Any): Built; changed in place, with those in it.
    """
    if getattr(dataset, 'filter_empty_gt', None) is True:
        dataset.filter_empty_gt = False
    for part in _part(dataset, 'datasets') or [_part(dataset, 'dataset')]:
        if part is not None:
            take_unlabelled(part)


def _config_seen_through(dataset: dict, pipeline: Any) -> dict:
    if dataset.get('datasets'):
        dataset['datasets'] = [
            _config_seen_through(dict(_base(part)), pipeline)
            for part in dataset['datasets']
        ]
        dataset.pop('pipeline', None)
    elif pipeline is not None:
        given = pipeline if isinstance(pipeline, list) else [pipeline]
        dataset['pipeline'] = copy.deepcopy(given)
    return dataset


def _base(dataset: Any) -> Any:
    """The data set below wrappers that repeat, balance or mix images."""
    while _part(dataset, 'dataset') is not None:
        dataset = _part(dataset, 'dataset')
    return dataset


def _part(dataset: Any, name: str) -> Any:
    if isinstance(dataset, dict):
        return dataset.get(name)
    return getattr(dataset, name, None)

"""Test pipelines in a config: where they are, and how they are brought to a size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Steps whose `scale` is the size of the image that they give, or bounds it.
_SCALED = ('Resize', 'FixScaleResize', 'LetterResize', 'YOLOv5KeepRatioResize')


def datasets(dataset: Any) -> Iterator[dict]:
    """The config of a dataset and those of all that it wraps or joins."""
    if isinstance(dataset, (list, tuple)):
        for item in dataset:
            yield from datasets(item)
    elif isinstance(dataset, dict):
        yield dataset
        yield from datasets(dataset.get('dataset'))
        yield from datasets(dataset.get('datasets'))


def pipelines(dataset: Any) -> list[list]:
    """All pipelines of a dataset's config, those of its wrappers among them."""
    return [item['pipeline'] for item in datasets(dataset) if item.get('pipeline')]


def kind(transform: Any) -> str:
    """Name of a transform's class, without its module or scope."""
    found = transform.get('type') if isinstance(transform, dict) else type(transform)
    name = found if isinstance(found, str) else getattr(found, '__name__', '')
    return name.rpartition('.')[2]


def steps(pipeline: Any) -> Iterator[dict]:
    """The transforms of a pipeline, and those that they apply in turn."""
    for item in pipeline if isinstance(pipeline, (list, tuple)) else ():
        if isinstance(item, dict):
            yield item
            yield from steps(item.get('transforms'))
        yield from steps(item)


def fit_dataset(dataset: Any, shape: tuple[int, int]) -> bool:
    """Lets what resizes, pads and crops in a dataset's pipelines give one size.

    In place. Steps that keep the aspect ratio go on to do so; what is then smaller
    than the size is for the padding to fill, see
    :class:`~mmquant_jacinto.export.configs.file_input.FileInput`.

    Args:
        dataset (dict): Config of a dataset.
        shape (Tuple[int, int]): Height and width.

    Returns:
        bool: Whether anything was changed.
    """
    changed = False
    for item in datasets(dataset):
        if item.get('batch_shapes_cfg'):
            # Of MMYOLO: a size for each batch.
            item['batch_shapes_cfg'] = None
            changed = True
    for pipeline in pipelines(dataset):
        inner = list(steps(pipeline))
        before = _crop_of(inner)
        for transform in inner:
            changed |= _fit(transform, shape, before)
    return changed


def _crop_of(transforms: list[dict]) -> int | None:
    """Shorter side of what a pipeline crops out of the middle, if it does."""
    sizes = [t.get('crop_size') for t in transforms if kind(t) == 'CenterCrop']
    if not sizes:
        return None
    return min(sizes[0]) if isinstance(sizes[0], (tuple, list)) else sizes[0]


def _fit(transform: dict, shape: tuple[int, int], crop: int | None) -> bool:
    name, size = kind(transform), (shape[1], shape[0])
    before = dict(transform)
    if name in _SCALED and crop is None:
        transform['scale'] = size
        transform.pop('scale_factor', None)
    elif name == 'FixShapeResize':
        transform.update(width=size[0], height=size[1])
    elif name == 'Pad':
        transform['size'] = size
        transform.pop('size_divisor', None)
        transform.pop('pad_to_square', None)
    elif name == 'CenterCrop':
        transform['crop_size'] = size
    elif name == 'ResizeEdge' and crop:
        # The margin around the crop stays in proportion.
        transform['scale'] = round(transform['scale'] * min(shape) / crop)
    return dict(transform) != before

"""Where the images of an export come from: a test set, a folder, or neither."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS

from ...errors import QuantizeError
from .pipelines import kind, pipelines

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')
# Images of a test set whose sizes it does not know, that are read to see them.
MAX_READ = 256
# Aspect ratios to try a pipeline with, where there is no image: 3 : 1 to 1 : 3.
_SIZES = ((480, 640), (640, 480), (512, 512), (320, 960), (960, 320))


def open_dataset(cfg: Config) -> Any:
    """The dataset of a test, built.

    Raises:
        QuantizeError: If it is not there.
    """
    loader = cfg.get('test_dataloader')
    try:
        if loader is None:
            raise KeyError('test_dataloader')
        dataset = copy.deepcopy(loader.dataset)
        dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        return dataset
    except (OSError, KeyError, AttributeError) as error:
        raise _unreadable(error) from None


def items_of(dataset: Any, loader: Any) -> list[Any]:
    """What a test asks a dataset for: indices, of frames where it takes those.

    Args:
        dataset (Dataset): Built.
        loader (dict, optional): Config of the dataloader.
    """
    sampler = (loader or {}).get('sampler')
    if kind(sampler) == 'TrackImgSampler' and hasattr(dataset, 'get_len_per_video'):
        return [
            (video, frame)
            for video in range(len(dataset))
            for frame in range(dataset.get_len_per_video(video))
        ]
    return list(range(len(dataset)))


def read(dataset: Any, indices: Iterable[Any]) -> Iterator[dict]:
    """Images of a dataset, in batches of one.

    Raises:
        QuantizeError: If one is not there.
    """
    for index in indices:
        try:
            batch = pseudo_collate([dataset[index]])
        except Exception as error:  # noqa: B902 - whatever a transform raises
            raise _unreadable(error) from error
        yield batch


def _unreadable(error: Exception) -> QuantizeError:
    return QuantizeError(
        f'the images of test_dataloader cannot be read ({error}); give a '
        'folder of images with --images, or --verify 0 to export without proof'
    )


def telling_images(dataset: Any, first: int, items: list[Any]) -> Iterator[dict]:
    """Batches of one image each, whose sizes tell those of a whole test set.

    Of images whose sizes the dataset knows, those of the most different aspect
    ratios: what keeps the ratio gives its largest height and width with them.

    Args:
        dataset (Dataset): Built.
        first (int): This many are among them in any case.
        items (List): Of :func:`items_of`.
    """
    count = len(items)
    chosen = set(range(min(first, count)))
    sizes = _known_sizes(dataset) if count == len(dataset) else None
    if sizes is not None:
        chosen |= _extremes(sizes)
    else:
        chosen |= set(range(0, count, -(-count // MAX_READ)))
    yield from read(dataset, [items[index] for index in sorted(chosen)])


def _known_sizes(dataset: Any) -> np.ndarray | None:
    """Heights and widths (N, 2) that a dataset's annotations say."""
    info_of = getattr(dataset, 'get_data_info', None)
    if info_of is None or not len(dataset):
        return None
    sizes = []
    for index in range(len(dataset)):
        info = info_of(index)
        size = (info.get('height'), info.get('width'))
        if not all(size):
            return None
        sizes.append(size)
    return np.asarray(sizes, np.float64)


def _extremes(sizes: np.ndarray) -> set[int]:
    """Indices of the widest and tallest images, and of those nearest to a square."""
    ratio = sizes[:, 1] / sizes[:, 0]
    found = [ratio.argmin(), ratio.argmax(), *sizes.argmax(0), *sizes.argmin(0)]
    for wide in (True, False):
        # Where one orientation ends and the other begins.
        group = np.flatnonzero((ratio >= 1) == wide)
        if len(group):
            order = ratio[group] if wide else -ratio[group]
            found.append(group[order.argmin()])
    return {int(index) for index in found}


def folder_images(cfg: Config, folder: str) -> Iterator[dict]:
    """Batches of one image each, of a folder, by the test pipeline.

    Raises:
        QuantizeError: If there are none.
    """
    paths = sorted(
        path for path in Path(folder).glob('*') if path.suffix.lower() in IMAGE_SUFFIXES
    )
    if not paths:
        raise QuantizeError(f'--images {folder}: there are no images in it')
    pipeline = _without(cfg, ('LoadAnnotations',))
    for index, path in enumerate(paths):
        try:
            item = pipeline(dict(img_path=str(path), img_id=index))
        except Exception as error:  # noqa: B902 - whatever a transform raises
            raise QuantizeError(
                f'--images {folder}: {path.name} cannot be read by the test pipeline '
                f'({type(error).__name__}: {error}); remove it from the folder'
            ) from error
        yield pseudo_collate([item])


def made_up_images(cfg: Config) -> Iterator[dict]:
    """Batches of one gray image each, of several aspect ratios, by the test pipeline.

    Raises:
        QuantizeError: If the pipeline does not take them.
    """
    pipeline = _without(cfg, ('Load',))
    for index, size in enumerate(_SIZES):
        image = np.full((*size, 3), 127, np.uint8)
        item = dict(img=image, img_shape=size, ori_shape=size, img_id=index)
        try:
            yield pseudo_collate([pipeline({**item, 'img_path': ''})])
        except Exception as error:  # noqa: B902 - whatever a transform raises
            raise QuantizeError(
                'the size of the images does not follow from test_dataloader '
                f'({type(error).__name__}: {error}); give --shape HEIGHT WIDTH and '
                '--images FOLDER'
            ) from None


def _without(cfg: Config, names: tuple[str, ...]) -> Compose:
    """The test pipeline without the steps whose names begin so."""
    loader = cfg.get('test_dataloader')
    found = pipelines(loader.dataset) if loader is not None else []
    if not found:
        raise QuantizeError(
            'the size of the images does not follow from the config, which has no '
            'test_dataloader with a pipeline'
        )
    pipeline = copy.deepcopy(found[-1])
    return Compose([t for t in pipeline if not kind(t).startswith(names)])

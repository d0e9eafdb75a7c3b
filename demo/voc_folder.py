"""Data sets in VOC layout: what a folder holds."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class VOCFolder:
    """A detection data set in VOC layout.

    Args:
        name: What the results call it.
        root: The folder with ``JPEGImages``, ``Annotations`` and ``ImageSets``.
        train_split: The split to train on, a file in ``ImageSets/Main``.
        test_split: The split to test on.
        classes: The names of the classes in the training split.
        num_train: The number of training images.
    """

    name: str
    root: Path
    train_split: str
    test_split: str
    classes: tuple[str, ...]
    num_train: int


def read_voc_folder(path: Path) -> VOCFolder:
    """Find out what a folder in VOC layout holds.

    Args:
        path: The folder itself, or one that has it as ``VOC2007``.

    Raises:
        SystemExit: If the folder lacks images to train or to test on.
    """
    root = path / 'VOC2007' if (path / 'VOC2007').is_dir() else path
    for train_split, test_split in [('trainval', 'test'), ('train', 'val')]:
        image_ids = read_split(root, train_split)
        if image_ids and read_split(root, test_split):
            return VOCFolder(
                name=path.resolve().name,
                root=root.resolve(),
                train_split=train_split,
                test_split=test_split,
                classes=read_classes(root, image_ids),
                num_train=len(image_ids),
            )
    raise SystemExit(
        f'error: {root} is not in VOC layout: ImageSets/Main should have either '
        'trainval.txt and test.txt, or train.txt and val.txt'
    )


def read_split(root: Path, split: str) -> list[str]:
    """Return the names of the images of a split, none if there is no such split."""
    path = root / 'ImageSets' / 'Main' / f'{split}.txt'
    return path.read_text().split() if path.is_file() else []


def read_classes(root: Path, image_ids: list[str]) -> tuple[str, ...]:
    """Return the names of the classes that occur in these images, sorted."""
    names = set()
    for image_id in image_ids:
        annotation = ElementTree.parse(root / 'Annotations' / f'{image_id}.xml')
        names.update(name.text for name in annotation.iterfind('object/name'))
    return tuple(sorted(names))

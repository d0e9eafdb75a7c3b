"""The data of the demo: a folder in VOC layout, given or composed of real images."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from voc_folder import VOCFolder, read_split, read_voc_folder

IMAGE_SIZE = 256
DIGITS = range(3)  # ten need more images than a demo has time for
DIGITS_PER_IMAGE = 16  # before those that overlap are left out
NUM_IMAGES = dict(train=240, val=80)


def compose_digits(root: Path) -> VOCFolder:
    """Paste handwritten digits onto photographs, both from scikit-learn.

    Test images have handwriting and parts of the photographs that no training
    image has. The images are the same in every run.

    Args:
        root: Where to write the data set, unless it is there already.
    """
    # The last file written, so that an interrupted run is composed again.
    if not read_split(root, 'val'):
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for split, num_images in NUM_IMAGES.items():
            names = [f'{split}_{index:04d}' for index in range(num_images)]
            for name in names:
                write_digits_image(root, name, split, rng)
            split_file = root / 'ImageSets' / 'Main' / f'{split}.txt'
            split_file.write_text('\n'.join(names) + '\n')
    return read_voc_folder(root)


def write_digits_image(
    root: Path, name: str, split: str, rng: np.random.Generator
) -> None:
    """Compose one image and write it with its annotation."""
    image = crop_background(split, rng)
    annotation = ElementTree.Element('annotation')
    size = ElementTree.SubElement(annotation, 'size')
    for key, value in zip(('height', 'width', 'depth'), image.shape):
        ElementTree.SubElement(size, key).text = str(value)
    occupied = np.zeros(image.shape[:2], dtype=bool)
    for _ in range(DIGITS_PER_IMAGE):
        label, digit = draw_digit(split, rng)
        height, width = digit.shape
        top = rng.integers(0, IMAGE_SIZE - height)
        left = rng.integers(0, IMAGE_SIZE - width)
        place = slice(top, top + height), slice(left, left + width)
        if occupied[place].any():
            continue
        occupied[place] = True
        image[place] = blend(image[place], digit, rng)
        add_object(annotation, str(label), (left, top, left + width, top + height))
    cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), image)
    ElementTree.ElementTree(annotation).write(root / 'Annotations' / f'{name}.xml')


@lru_cache
def load_photographs() -> list[np.ndarray]:
    """Return the photographs that come with scikit-learn, BGR as OpenCV has it."""
    # imported here: a data set that is given needs no scikit-learn
    from sklearn.datasets import load_sample_images

    return [image[..., ::-1] for image in load_sample_images().images]


@lru_cache
def load_handwriting() -> tuple[np.ndarray, np.ndarray]:
    """Return labels and images of digits; ink is 1, paper 0."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    selected = np.isin(digits.target, DIGITS)
    return digits.target[selected], digits.images[selected] / digits.images.max()


def crop_background(split: str, rng: np.random.Generator) -> np.ndarray:
    """Cut a square out of a photograph, its right part being for tests only."""
    photographs = load_photographs()
    photograph = photographs[rng.integers(len(photographs))]
    height, width, _ = photograph.shape
    top = rng.integers(0, height - IMAGE_SIZE + 1)
    test_left = width - IMAGE_SIZE
    left = test_left
    if split == 'train':
        left = rng.integers(0, test_left - IMAGE_SIZE + 1)
    crop = photograph[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    return np.ascontiguousarray(crop)


def draw_digit(split: str, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """Pick a digit and scale its ink, from 0 to 1, to a random size."""
    labels, inks = load_handwriting()
    boundary = len(labels) * 3 // 4
    if split == 'train':
        index = rng.integers(0, boundary)
    else:
        index = rng.integers(boundary, len(labels))
    ink = inks[index]
    columns = np.flatnonzero(ink.any(axis=0))
    ink = ink[:, columns[0] : columns[-1] + 1]
    scale = rng.uniform(5, 7)
    shape = round(ink.shape[1] * scale), round(ink.shape[0] * scale)
    ink = cv2.resize(ink, shape, interpolation=cv2.INTER_LINEAR)
    return int(labels[index]), ink


def blend(patch: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write on a patch of the background, light on dark or dark on light."""
    color = rng.uniform(0, 60, size=3)
    if patch.mean() < 128:
        color = 255 - color
    alpha = ink[..., None]
    return (patch * (1 - alpha) + color * alpha).astype(patch.dtype)


def add_object(
    annotation: ElementTree.Element, name: str, box: tuple[int, int, int, int]
) -> None:
    """Append an object; VOC counts pixels from 1."""
    element = ElementTree.SubElement(annotation, 'object')
    ElementTree.SubElement(element, 'name').text = name
    bndbox = ElementTree.SubElement(element, 'bndbox')
    for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box):
        ElementTree.SubElement(bndbox, key).text = str(value + 1)

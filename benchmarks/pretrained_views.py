"""Views of photographs: more inputs than there are photographs to score on.

A few photographs move mAP by two points, whatever is quantized: each detection that
comes or goes is a large part. A mirrored, darker or smaller photograph has the same
objects and other numbers everywhere in the network, so other noise. Float has a score
of its own on the views; what is lost against it is that of quantization.

    python benchmarks/pretrained_views.py ANNOTATIONS IMAGES FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# How much wider and higher the canvas is that a photograph is put on, grey around it,
# and the exponent of its brightness, from 0 to 1.
SEEN = ((1.0, 1.0), (1.0, 0.7), (1.15, 1.0), (1.4, 1.4))
VIEWS_OF_EACH = 2 * len(SEEN)  # as it is, and mirrored
# What both networks' pipelines fill borders with, or near it.
GREY = (114, 114, 114)
QUALITY = 95


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('annotations', type=Path, help="a file as COCO's")
    parser.add_argument('images', type=Path, help='the folder of its images')
    parser.add_argument('folder', type=Path, help='where views and their file go')
    return parser.parse_args()


def view(
    image: Image.Image, canvas: float, gamma: float, mirrored: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """Return a view of a photograph, and where its left upper corner is.

    Args:
        image: In RGB.
        canvas: The side of the canvas, in sides of the photograph.
        gamma: The exponent of the brightness, which is from 0 to 1.
        mirrored: Whether left and right change places.
    """
    table = np.arange(256) / 255.0
    curve = (255 * table**gamma).round().astype(np.uint8).tolist()
    seen = (ImageOps.mirror(image) if mirrored else image).point(curve * 3)
    width, height = (round(canvas * side) for side in image.size)
    corner = (width - image.width) // 2, (height - image.height) // 2
    whole = Image.new('RGB', (width, height), GREY)
    whole.paste(seen, corner)
    return whole, corner


def views_of(
    image: Image.Image, boxes: Sequence[Sequence[float]]
) -> Iterator[tuple[Image.Image, list[list[float]]]]:
    """Yield the views of a photograph, and where boxes are in them.

    Args:
        image: In RGB.
        boxes: Left, top, width and height, in pixels.
    """
    for (canvas, gamma), mirrored in itertools.product(SEEN, (False, True)):
        seen, (left, top) = view(image, canvas, gamma, mirrored)
        yield (
            seen,
            [
                [(image.width - x - w if mirrored else x) + left, y + top, w, h]
                for x, y, w, h in boxes
            ],
        )


def write_views(annotations: Path, images: Path, folder: Path) -> Path:
    """Write the views of photographs, and where the objects are in them.

    Args:
        annotations: A file as COCO's.
        images: The folder of its images.
        folder: Where ``images`` and the file go.

    Returns:
        Path: The file of the views, as COCO's. :data:`VIEWS_OF_EACH` numbers after
        each other are those of one photograph.
    """
    content = json.loads(annotations.read_text())
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    objects: dict[int, list[dict[str, Any]]] = {}
    for item in content['annotations']:
        objects.setdefault(item['image_id'], []).append(item)
    listed: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for photograph in content['images']:
        own = objects.get(photograph['id'], [])
        with Image.open(images / photograph['file_name']) as file:
            image = file.convert('RGB')
        for seen, boxes in views_of(image, [item['bbox'] for item in own]):
            number = len(listed) + 1
            name = f'{number:06d}.jpg'
            seen.save(folder / 'images' / name, quality=QUALITY)
            size = dict(width=seen.width, height=seen.height)
            listed.append(dict(id=number, file_name=name, **size))
            for item, box in zip(own, boxes):
                place = dict(id=len(found) + 1, image_id=number, bbox=box)
                found.append(dict(item, **place))
    path = folder / 'annotations.json'
    path.write_text(json.dumps(dict(content, images=listed, annotations=found)))
    return path


def main() -> None:
    args = parse_args()
    print(write_views(args.annotations, args.images, args.folder))


if __name__ == '__main__':
    main()

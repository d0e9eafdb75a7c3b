"""COCO in small: photographs of scikit-learn in COCO's layout and categories."""

import json

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from sklearn.datasets import load_sample_images

IMAGE_SIZE = 128, 160  # height, width
NUM_IMAGES = dict(train=4, val=2)
CATEGORIES = CocoDataset.METAINFO['classes']
# What a detector might take parts of a temple and a flower for.
OBJECTS = [('bench', 'kite'), ('potted plant', 'vase')]


def compose(root):
    """Writes ``instances_{train,val}2017.json`` and their images.

    Args:
        root (Path): What upstream's configs call ``data/coco``.
    """
    rng = np.random.default_rng(0)
    (root / 'annotations').mkdir(parents=True)
    for split, num_images in NUM_IMAGES.items():
        folder = root / f'{split}2017'
        folder.mkdir()
        images, annotations = [], []
        for image_id in range(num_images):
            which = image_id % len(OBJECTS)
            name = f'{image_id:012d}.jpg'
            cv2.imwrite(str(folder / name), crop(which, rng))
            height, width = IMAGE_SIZE
            images.append(dict(id=image_id, file_name=name, height=height, width=width))
            for box, label in zip(draw_boxes(rng), [*OBJECTS[which], 'person']):
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image_id,
                        category_id=CATEGORIES.index(label) + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
        content = dict(
            images=images,
            annotations=annotations,
            categories=[
                dict(id=index + 1, name=name) for index, name in enumerate(CATEGORIES)
            ],
        )
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content))


def crop(which, rng):
    """A part of a photograph, BGR as OpenCV has it."""
    photograph = load_sample_images().images[which]
    height, width = IMAGE_SIZE
    top = rng.integers(photograph.shape[0] - height)
    left = rng.integers(photograph.shape[1] - width)
    part = photograph[top : top + height, left : left + width, ::-1]
    return np.ascontiguousarray(part)


def draw_boxes(rng):
    """Two boxes (x, y, w, h), and a degenerate one as real data sets have."""
    height, width = IMAGE_SIZE
    boxes = []
    for _ in range(2):
        w, h = rng.uniform(40, 90, size=2)
        boxes.append([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h])
    return [*boxes, [20.0, 30.0, 0.0, 0.0]]

"""Pascal VOC in small: photographs of scikit-learn in the layout of its devkit."""

import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
from mini_coco import IMAGE_SIZE, crop, draw_boxes

# What upstream's configs read of each year.
SPLITS = {'VOC2007': dict(trainval=4, test=2), 'VOC2012': dict(trainval=4)}
# What a detector might take parts of a temple and a flower for.
OBJECTS = ['chair', 'pottedplant']


def compose(root):
    """Writes the images, annotations and lists of both years.

    Args:
        root (Path): What upstream's configs call ``data/VOCdevkit``.
    """
    rng = np.random.default_rng(0)
    for year, splits in SPLITS.items():
        folders = {
            name: root / year / name
            for name in ('JPEGImages', 'Annotations', 'ImageSets/Main')
        }
        for folder in folders.values():
            folder.mkdir(parents=True)
        for split, count in splits.items():
            names = [f'{split}_{number}' for number in range(count)]
            lines = '\n'.join(names) + '\n'
            (folders['ImageSets/Main'] / f'{split}.txt').write_text(lines)
            for number, name in enumerate(names):
                which = number % len(OBJECTS)
                image = folders['JPEGImages'] / f'{name}.jpg'
                cv2.imwrite(str(image), crop(which, rng))
                xml = annotation(draw_boxes(rng), OBJECTS[which])
                xml.write(folders['Annotations'] / f'{name}.xml')


def annotation(boxes, label):
    """The XML of one image; boxes are (x, y, w, h)."""
    root = ElementTree.Element('annotation')
    size = ElementTree.SubElement(root, 'size')
    for name, value in zip(('height', 'width', 'depth'), (*IMAGE_SIZE, 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for x, y, w, h in boxes:
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = label
        ElementTree.SubElement(item, 'difficult').text = '0'
        box = ElementTree.SubElement(item, 'bndbox')
        corners = dict(xmin=x, ymin=y, xmax=x + w, ymax=y + h)
        for name, value in corners.items():
            ElementTree.SubElement(box, name).text = str(round(value) + 1)
    return ElementTree.ElementTree(root)

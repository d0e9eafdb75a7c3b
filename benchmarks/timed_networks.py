"""The networks that are timed, with random weights, and batches for them."""

import platform
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from mmquant_jacinto import native

ROOT = Path(__file__).resolve().parents[1]
# The detectors of ``configs/bccd`` (SSD head on FPN), and some of MMDetection's.
DETECTORS = {
    'mobilenet': 'configs/bccd/ssd_mobilenet_fpn.py',
    'regnet': 'configs/bccd/ssd_regnet_fpn.py',
    'resnet': 'configs/bccd/ssd_resnet_fpn.py',
}
OTHERS = {
    'retinanet_r18': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'yolox_tiny': 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'retinanet_swin': 'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    'deformable_detr': 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
}
NETWORKS = {**DETECTORS, **OTHERS}
LABELS = {
    'mobilenet': 'MobileNetV2',
    'regnet': 'RegNetX-800MF',
    'resnet': 'ResNet-50',
    'retinanet_r18': 'RetinaNet R18',
    'yolox_tiny': 'YOLOX-Tiny',
    'retinanet_swin': 'RetinaNet Swin-T',
    'deformable_detr': 'Deformable DETR',
}


def build(name: str) -> torch.nn.Module:
    """One of :data:`NETWORKS`, with random weights, in float."""
    path = NETWORKS[name]
    if path.startswith('mmdet::'):
        cfg = get_config(path)
        cfg.model.get('backbone', {}).pop('init_cfg', None)
    else:
        cfg = Config.fromfile(ROOT / path)
    # Batches of another size take as long as the smaller one that is drawn.
    cfg.model.get('data_preprocessor', {}).pop('batch_augments', None)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def begin_timing() -> dict[str, Any]:
    """Prepare the process for times of these networks.

    Random weights make denormal numbers, which take a processor many times as long; on
    grids there are none. So they count as zero from now on.

    Returns:
        dict: What a report says of the process.
    """
    torch.set_flush_denormal(True)
    return dict(
        torch=torch.__version__,
        processor=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        kernels='C' if native.is_built() else 'torch',
    )


def random_batch(batch: int, size: int) -> dict[str, Any]:
    """A batch as mmdet's dataloader yields it, with ten boxes per image.

    Args:
        batch (int): Images.
        size (int): Their sides, in pixels.

    Returns:
        dict: ``inputs``, uint8 images (3, size, size), and ``data_samples``.
    """
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        corner = torch.rand(10, 2, generator=generator) * size * 0.6
        extent = (torch.rand(10, 2, generator=generator) * 0.3 + 0.05) * size
        shape = (size, size)
        samples.append(
            DetDataSample(
                metainfo=dict(
                    img_shape=shape,
                    ori_shape=shape,
                    pad_shape=shape,
                    batch_input_shape=shape,
                    scale_factor=(1.0, 1.0),
                    img_id=0,
                ),
                gt_instances=InstanceData(
                    bboxes=torch.cat([corner, corner + extent], 1),
                    labels=torch.randint(3, (10,), generator=generator),
                ),
            )
        )
    images = torch.randint(
        256, (batch, 3, size, size), generator=generator, dtype=torch.uint8
    )
    return dict(inputs=list(images), data_samples=samples)

"""BCCD in small: photographs of noise, and a random detector for them."""

import cv2
import detector_scores
import numpy as np
import peers
import torch
from mmengine.registry import MODELS, init_default_scope
from paths import CONFIGS

CONFIG = CONFIGS / 'bccd' / 'ssd_mobilenet_fpn.py'
CLASSES = ('RBC', 'WBC', 'Platelets')
NUM_IMAGES = 3
SIZE = 64


def annotate(root, boxes_of):
    """Writes images and boxes (label, x1, y1, x2, y2) in VOC layout."""
    folder = root / 'VOC2007'
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / 'JPEGImages' / f'{index}.jpg'), image)
        objects = ''.join(
            f'<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox>'
            f'<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>'
            '</bndbox></object>'
            for label, x1, y1, x2, y2 in boxes_of(index)
        )
        (folder / 'Annotations' / f'{index}.xml').write_text(
            f'<annotation><size><width>{SIZE}</width><height>{SIZE}</height>'
            f'<depth>3</depth></size>{objects}</annotation>'
        )
    names = '\n'.join(map(str, range(NUM_IMAGES))) + '\n'
    for split in ('train', 'val'):
        (folder / 'ImageSets' / 'Main' / f'{split}.txt').write_text(names)


def set_statistics(detector, images):
    """Gives normalizations the statistics of the images."""
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        detector.train().extract_feat(images)
    detector.eval()


def random_detector(root, patch, head_std=None):
    """Writes the photographs and builds a detector that was never trained.

    Args:
        root (Path): What ``BCCD_ROOT`` becomes.
        patch (MonkeyPatch): Sets the environment.
        head_std (float, optional): Of the head's weights; those of its own
            initialization are next to nothing.

    Returns:
        Tuple[Config, nn.Module, DetectorTest]: Its config, itself, its images.
    """
    patch.setenv('BCCD_ROOT', str(root))
    patch.setenv('INPUT_SIZE', str(SIZE))
    annotate(root, lambda index: [(0, 5, 5, 30, 40)])
    cfg = peers.read_config(CONFIG, NUM_IMAGES, root / 'work')
    torch.manual_seed(0)
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).eval()
    detector.init_weights()
    for name, parameter in detector.bbox_head.named_parameters():
        if head_std is not None and name.endswith('weight'):
            torch.nn.init.normal_(parameter, std=head_std)
    test = detector_scores.DetectorTest(cfg, detector)
    set_statistics(detector, torch.cat([b['inputs'] for b in test.batches]))
    return cfg, detector, test

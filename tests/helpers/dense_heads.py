"""Heads of MMDetection, and a small SSD that is quantized."""

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from mmdet.models.dense_heads import (  # noqa: E402
    ATSSHead,
    FCOSHead,
    GFLHead,
    RetinaHead,
    RTMDetSepBNHead,
    SSDHead,
    YOLOXHead,
)
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from paths import CONFIGS  # noqa: E402

from mmquant_jacinto import MMDetQuantCalibrateModule  # noqa: E402
from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402

SIZE = 128, 96
CLASSES = 3
NMS = dict(nms_pre=1000, score_thr=0.3, max_per_img=50, min_bbox_size=0)
TEST_CFG = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), **NMS)


def make_heads():
    anchors = dict(
        type='AnchorGenerator',
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=[0.5, 1.0, 2.0],
        strides=[8, 16],
    )
    shared = dict(num_classes=CLASSES, in_channels=8, test_cfg=TEST_CFG)
    one_anchor = {**anchors, 'scales_per_octave': 1, 'ratios': [1.0]}
    return {
        'ssd': SSDHead(
            num_classes=CLASSES,
            in_channels=(8, 8),
            anchor_generator=dict(
                type='SSDAnchorGenerator',
                scale_major=False,
                strides=[8, 16],
                ratios=[[2], [2, 3]],
                min_sizes=[20, 40],
                max_sizes=[40, 80],
            ),
            test_cfg=TEST_CFG,
        ),
        'retinanet': RetinaHead(feat_channels=8, anchor_generator=anchors, **shared),
        'fcos': FCOSHead(feat_channels=8, strides=[8, 16], norm_cfg=None, **shared),
        'atss': ATSSHead(
            feat_channels=8, norm_cfg=None, anchor_generator=one_anchor, **shared
        ),
        'yolox': YOLOXHead(feat_channels=8, strides=[8, 16], **shared),
        'gfl': GFLHead(
            feat_channels=8, norm_cfg=None, anchor_generator=one_anchor, **shared
        ),
        'rtmdet': RTMDetSepBNHead(
            feat_channels=8,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16]),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            with_objectness=False,
            **shared,
        ),
    }


class SmallSSD:
    """An SSD with random weights, calibrated on random images."""

    size = 64, 64

    def __init__(self, target='onnxruntime'):
        cfg = Config.fromfile(CONFIGS / 'bccd' / 'ssd_mobilenet_fpn.py')
        init_default_scope('mmdet')
        self.model = MODELS.build(cfg.model).eval()
        images = torch.rand(1, 3, *self.size) * 255
        self.wrapper = MMDetQuantCalibrateModule(
            self.model,
            dummy_input=images,
            target=target,
            calibration=dict(epochs=0),
        )
        self.batch = self.wrapper.as_batch(images)
        self.wrapper.train()
        data = self.model.data_preprocessor(self.batch)
        self.wrapper(**data, mode='predict')

    def export(self, target='onnxruntime', **options):
        return export_onnx(self.wrapper, self.batch, target, **options)

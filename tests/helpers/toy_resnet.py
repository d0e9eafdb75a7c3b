"""A backbone of mmdet in a model that trains in seconds."""

import pytest
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn
from toy_runner import QAT, make_config

pytest.importorskip('mmdet.models')


RESNET = dict(
    type='mmdet.ResNet',
    depth=18,
    in_channels=1,
    base_channels=4,
    stem_channels=4,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(2,),
    frozen_stages=-1,
    norm_eval=False,
)


@MODELS.register_module()
class ResNetClassifier(BaseModel):
    """A backbone of mmdet, in a model that trains in seconds."""

    def __init__(self, backbone, channels=16, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(channels, 10)

    def forward(self, inputs, labels=None, place=None, mode='tensor'):
        (x,) = self.backbone(inputs)
        scores = self.head(x.mean((2, 3)))
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(scores, labels))
        return list(scores) if mode == 'predict' else scores


def resnet_config(work_dir, quantize=QAT, backbone=None, **changes):
    cfg = make_config(work_dir, quantize, **changes)
    cfg.model = dict(type='ResNetClassifier', backbone=dict(RESNET, **(backbone or {})))
    return cfg

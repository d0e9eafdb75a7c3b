"""The detectors that a benchmark of budgets trains are built as they are written."""

import pytest
import torch
from mmengine.config import Config
from paths import ROOT

pytest.importorskip('mmdet')
from mmengine.registry import MODELS, init_default_scope  # noqa: E402

NETWORKS = {'faster_rcnn_bccd': 3, 'deformable_detr_bccd': 3, 'ssd_fpn_bccd': 5}


@pytest.mark.parametrize('name', NETWORKS)
def test_it_predicts(name):
    cfg = Config.fromfile(ROOT / 'benchmarks' / 'detectors' / f'{name}.py')
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model).eval()
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval
    with torch.no_grad():
        features = detector.extract_feat(torch.randn(1, 3, 64, 64))
    sizes = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)][: NETWORKS[name]]
    assert [tuple(level.shape[-2:]) for level in features] == sizes

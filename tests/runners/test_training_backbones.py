"""What backbones do in a training: normalizations, frozen stages, random paths."""

import pytest
import torch
from free_port import free_port
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from mmengine.runner import Runner
from qat_runs import ITERS, watch
from torch import nn
from toy_resnet import RESNET, resnet_config
from toy_runner import (
    QAT,
    Killed,
    differences,
    make_config,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import QuantizeError

pytest.importorskip('mmdet.models')


def changed_names(states):
    """Names of what is not in the end as after the first iteration."""
    return set(differences(states[0], states[-1]))


def test_sync_bn_becomes_bn_on_one_process(tmp_path):
    runner, sync = watch(
        resnet_config(tmp_path / 'sync', backbone=dict(norm_cfg=dict(type='SyncBN')))
    )
    _, plain = watch(resnet_config(tmp_path / 'plain'))
    assert not differences(sync.states[-1], plain.states[-1])
    # All convolutions with the normalizations behind them, and the linear layer.
    specs = runner.model.plan.weights.values()
    assert [spec.norm is None for spec in specs].count(True) == 1


@pytest.mark.parametrize('place', ['norm_cfg', 'sync_bn'])
def test_sync_bn_on_several_cpu_processes_is_refused(place, tmp_path, monkeypatch):
    env = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_PORT=free_port())
    for name, value in dict(env, MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, str(value))
    cfg = resnet_config(tmp_path, launcher='pytorch')
    if place == 'norm_cfg':
        cfg.model.backbone.norm_cfg = dict(type='SyncBN')
    else:
        cfg.sync_bn = 'torch'
    try:
        with pytest.raises(QuantizeError, match=r'backbone\.bn1 is a SyncBN.*BN'):
            Runner.from_cfg(cfg)
    finally:
        torch.distributed.destroy_process_group()


def test_frozen_stages_stay_and_are_quantized(tmp_path):
    backbone = dict(frozen_stages=1, norm_eval=True)
    runner, hook = watch(resnet_config(tmp_path, backbone=backbone))
    changed = changed_names(hook.states)
    frozen = ('backbone.conv1', 'backbone.bn1', 'backbone.layer1')
    assert not [name for name in changed if name.startswith(frozen)]
    assert 'backbone.layer2.0.conv1.weight' in changed
    # The statistics are those of the checkpoint, the affine part trains.
    assert 'backbone.layer2.0.bn1.running_mean' not in changed
    assert 'backbone.layer2.0.bn1.weight' in changed
    assert 'backbone.conv1.weight' in {
        s.weight for s in runner.model.plan.weights.values()
    }
    assert sum(hook.losses[-ITERS:]) < sum(hook.losses[:ITERS])


def test_with_cp_of_a_backbone_trains_bit_for_bit_as_without(tmp_path):
    ends = []
    for with_cp in (False, True):
        backbone = dict(with_cp=with_cp, frozen_stages=0)
        cfg = resnet_config(tmp_path / str(with_cp), backbone=backbone, iters=6)
        ends.append(watch(cfg)[1].states[-1])
    assert not differences(*ends)


@MODELS.register_module()
class DropPathBackbone(nn.Module):
    """Residual branches that are dropped, by images or as a whole."""

    def __init__(self, whole):
        super().__init__()
        from mmcv.cnn.bricks import DropPath

        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
            for _ in range(4)
        )
        self.drop = nn.Identity() if whole else DropPath(0.3)
        self.whole = whole
        self.runs = []

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for index, block in enumerate(self.blocks):
            if self.whole and self.training and torch.rand(()) < 0.3:
                continue
            self.runs.append(index)
            x = torch.relu(x + self.drop(block(x)))
        return (x,)


@pytest.mark.parametrize('whole', [False, True], ids=['drop_path', 'stochastic_depth'])
def test_dropped_branches(whole, tmp_path):
    cfg = make_config(tmp_path, QAT)
    backbone = dict(type='DropPathBackbone', whole=whole)
    cfg.model = dict(type='ResNetClassifier', backbone=backbone)
    runner, hook = watch(cfg)
    backbone = runner.model.module.backbone
    assert hook.losses[-1] < hook.losses[0]
    # A block that did not run has no part in the ranges of that iteration.
    activations = runner.model.quantization.activations
    counts = dict(zip(activations.index, activations.count.tolist()))
    while_observing = 4 * ITERS
    assert counts['backbone/input'] == while_observing
    fewest = min(counts.values())
    assert (fewest < while_observing) == whole
    assert fewest > 0
    cfg = make_config(tmp_path / 'test', QAT, load_from=str(tmp_path / 'epoch_6.pth'))
    cfg.model = dict(type='ResNetClassifier', backbone=dict(RESNET))
    cfg.model.backbone = dict(type='DropPathBackbone', whole=whole)
    assert Runner.from_cfg(cfg).test() == val_scores(tmp_path)[-1]
    if whole:
        assert len(backbone.runs) % 4


@MODELS.register_module()
class MultiScalePreprocessor(BaseDataPreprocessor):
    """Resizes whole batches to a random size, as mmdet's YOLOX does."""

    def __init__(self):
        super().__init__()
        from mmdet.models import BatchSyncRandomResize

        self.resize = BatchSyncRandomResize((2, 6), size_divisor=4, interval=3)
        self.sizes = []

    def forward(self, data, training=False):
        data = self.cast_data(data)
        if training:
            data['inputs'], _ = self.resize(data['inputs'], [])
            self.sizes.append(data['inputs'].shape[-1])
        return data


def multi_scale_config(work_dir, **changes):
    cfg = resnet_config(work_dir, **changes)
    cfg.model.data_preprocessor = dict(type='MultiScalePreprocessor')
    return cfg


def test_multi_scale_training(tmp_path):
    runner, hook = watch(multi_scale_config(tmp_path / 'whole', iters=12))
    assert len(set(runner.model.module.data_preprocessor.sizes)) > 1
    assert torch.tensor(hook.losses).isfinite().all()
    # A resumed run goes on with the size that was drawn before it was killed.
    kill = [dict(type='KillHook', before_iter=6)]
    with pytest.raises(Killed):
        train(multi_scale_config(tmp_path / 'parts', iters=12, custom_hooks=kill))
    train(multi_scale_config(tmp_path / 'parts', iters=12, resume=True))
    states = [state_of(tmp_path / name / 'iter_12.pth') for name in ('whole', 'parts')]
    assert not differences(*states)

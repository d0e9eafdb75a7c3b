"""What a config of MMEngine can ask of a training, asked of a quantized one."""

import pytest
import torch
from free_port import free_port
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from toy_runner import (
    BATCH_SIZE,
    EPOCHS,
    NUM_TRAIN,
    Killed,
    WatchHook,
    differences,
    log_of,
    make_config,
    scalars,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import QuantizeError

pytest.importorskip('mmdet.models')

QAT = dict(mode='qat', bits=8)
PTQ = dict(mode='ptq', bits=8)
ITERS = NUM_TRAIN // BATCH_SIZE  # in an epoch
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


def watch(cfg):
    """Trains a config, and returns the runner and the hook that watched it."""
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='WatchHook')]
    runner = train(cfg)
    return runner, next(hook for hook in runner.hooks if isinstance(hook, WatchHook))


def changed_names(states):
    """Names of what is not in the end as after the first iteration."""
    return set(differences(states[0], states[-1]))


# Precision


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('bits', [8, 16])
def test_autocast_trains_as_full_precision_does(dtype, bits, tmp_path, monkeypatch):
    # MMEngine asks for a GPU, and for bfloat16 without; torch's autocast does not.
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    monkeypatch.setattr(
        'mmengine.runner.amp.autocast',
        lambda dtype: torch.autocast('cpu', dtype=dtype),
    )
    quantize = dict(mode='qat', bits=bits)
    _, full = watch(make_config(tmp_path / 'full', quantize))
    amp = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': dtype}
    _, half = watch(make_config(tmp_path / 'half', quantize, **amp))
    assert half.losses[-1] < half.losses[0] / 2
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.25, abs=0.05)
    for name, value in half.states[-1].items():
        assert value.isfinite().all(), name
        assert value.dtype not in (torch.float16, torch.bfloat16), name
    scores = [val_scores(tmp_path / name)[-1] for name in ('full', 'half')]
    assert scores[1]['accuracy'] == pytest.approx(scores[0]['accuracy'], abs=0.1)


# Normalization


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


# Randomness in the model and in its input


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


# Optimization


def test_clipped_gradients(tmp_path):
    clip = {'optim_wrapper.clip_grad': dict(max_norm=0.1)}
    _, hook = watch(make_config(tmp_path, QAT, iters=6, **clip))
    norms = [line['grad_norm'] for line in scalars(tmp_path) if 'grad_norm' in line]
    assert len(norms) == 6
    assert all(0.1 < norm < 100 for norm in norms)
    # The learning rate is 0.02, and the momentum 0.9.
    step = hook.states[1]['head.weight'] - hook.states[0]['head.weight']
    assert 0 < step.norm() <= 0.02 * 0.1 * 1.9 * 1.01


PARAMWISE = dict(
    custom_keys={'backbone': dict(lr_mult=0.1), 'head.bias': dict(decay_mult=0.0)},
    norm_decay_mult=0.0,
)


def optimizer_groups(runner):
    """What the optimizer does with each parameter, by name."""
    optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    model = getattr(runner.model, 'module', runner.model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('constructor', ['paramwise', 'layers'])
def test_settings_by_parameter_are_those_of_the_float_run(constructor, tmp_path):
    groups = []
    for quantize in (None, QAT):
        cfg = make_config(
            tmp_path / str(quantize),
            quantize,
            iters=2,
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
        )
        cfg.optim_wrapper.optimizer.weight_decay = 0.05
        if constructor == 'paramwise':
            cfg.optim_wrapper.paramwise_cfg = PARAMWISE
        else:
            # mmdet's, by the names of a ConvNeXt or a Swin.
            cfg.optim_wrapper.constructor = (
                'mmdet.LearningRateDecayOptimizerConstructor'
            )
            cfg.optim_wrapper.paramwise_cfg = dict(
                decay_rate=0.7, decay_type='layer_wise', num_layers=6
            )
            cfg.model = dict(type='ToyConvNeXt')
        groups.append(optimizer_groups(train(cfg)))
    float_groups, quantized_groups = groups
    assert quantized_groups == float_groups
    assert len(set(float_groups.values())) > 1
    assert not any(name.startswith('quantization') for name in quantized_groups)


@MODELS.register_module()
class ConvNeXt(nn.Module):
    """Names as in the original, which the constructor goes by."""

    def __init__(self):
        super().__init__()
        self.downsample_layers = nn.ModuleList(
            [nn.Conv2d(1, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)]
        )
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1)) for _ in range(2))

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages):
            x = torch.relu(stage(down(x)))
        return (x,)


@MODELS.register_module()
class ToyConvNeXt(ResNetClassifier):
    def __init__(self):
        super().__init__(dict(type='ConvNeXt'), channels=8)


def test_ranges_do_not_decay(tmp_path):
    # All that the optimizer moves is the float model's own.
    decay = {'optim_wrapper.optimizer.weight_decay': 5.0}
    runner, hook = watch(
        make_config(tmp_path, dict(QAT, freeze=dict(ranges=1)), **decay)
    )
    high = 'quantization.activations.high'
    assert torch.equal(hook.states[ITERS][high], hook.states[-1][high])
    assert not list(runner.model.quantization.parameters())


# Loops and hooks


def test_dynamic_intervals(tmp_path):
    loop = {'train_cfg.val_interval': 3, 'train_cfg.dynamic_intervals': [(5, 1)]}
    train(make_config(tmp_path / 'epochs', QAT, **loop))
    assert len(val_scores(tmp_path / 'epochs')) == len([3, 4, 5, 6])
    loop['train_cfg.dynamic_intervals'] = [(7, 1)]
    train(make_config(tmp_path / 'iterations', QAT, iters=8, **loop))
    assert len(val_scores(tmp_path / 'iterations')) == len([3, 6, 7, 8])
    assert 'ranges frozen from epoch 5 of 6' in log_of(tmp_path / 'epochs')
    assert 'ranges frozen from iteration 6 of 8' in log_of(tmp_path / 'iterations')


def test_early_stopping(tmp_path):
    hook = dict(
        type='EarlyStoppingHook',
        monitor='accuracy',
        rule='greater',
        min_delta=1.0,
        patience=2,
    )
    runner = train(make_config(tmp_path, QAT, custom_hooks=[hook]))
    assert runner.epoch == 3 < EPOCHS
    cfg = make_config(tmp_path / 'test', QAT, load_from=str(tmp_path / 'epoch_3.pth'))
    assert Runner.from_cfg(cfg).test() == val_scores(tmp_path)[-1]


@pytest.mark.parametrize('quantize', [QAT, PTQ], ids=['qat', 'ptq'])
def test_profiler(quantize, tmp_path):
    trace = tmp_path / 'trace.json'
    hook = dict(
        type='ProfilerHook',
        by_epoch=False,
        profile_times=3,
        json_trace_path=str(trace),
    )
    train(make_config(tmp_path, quantize, custom_hooks=[hook]))
    if quantize is QAT:
        assert 'aten::conv2d' in trace.read_text()
    else:
        assert 'ProfilerHook is off' in log_of(tmp_path)
    # Nothing goes on being profiled.
    with torch.profiler.profile():
        pass


def test_memory_and_time_hooks_of_upstream(tmp_path):
    hooks = [dict(type='EmptyCacheHook'), dict(type='SyncBuffersHook')]
    train(make_config(tmp_path, QAT, iters=2, custom_hooks=hooks))
    assert (tmp_path / 'iter_2.pth').is_file()

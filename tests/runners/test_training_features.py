"""What a config of MMEngine can ask of a training, asked of a quantized one."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from qat_runs import EMA, ITERS, RANGES, score_of, watch
from torch import nn
from toy_resnet import ResNetClassifier
from toy_runner import (
    EPOCHS,
    PTQ,
    QAT,
    differences,
    load,
    log_of,
    make_config,
    scalars,
    train,
    val_scores,
)

pytest.importorskip('mmdet.models')


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


def test_training_without_validation(tmp_path):
    train(
        make_config(
            tmp_path,
            QAT,
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
        )
    )
    assert (tmp_path / f'epoch_{EPOCHS}.pth').is_file()
    assert not val_scores(tmp_path)


def test_accumulated_gradients_step_once_per_count(watched):
    states = watched(**{'optim_wrapper.accumulative_counts': 2}).states
    weights = [state['backbone.conv.weight'] for state in states]
    changes = [not torch.equal(*pair) for pair in zip(weights, weights[1:])]
    assert changes == [index % 2 == 0 for index in range(len(changes))]
    # Ranges follow every batch.
    highs = [state['quantization.activations.high'] for state in states[: 4 * ITERS]]
    assert all(not torch.equal(*pair) for pair in zip(highs, highs[1:]))


def test_scaled_down_precision_trains(tmp_path, watched, monkeypatch):
    # MMEngine asks for a GPU, although torch's autocast does without.
    module = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
    monkeypatch.setattr(f'{module}.is_cuda_available', lambda: True)
    hook = watched(
        **{'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
    )
    assert torch.tensor(hook.losses).isfinite().all()
    assert hook.losses[-1] < hook.losses[0] / 2
    for name, value in hook.states[-1].items():
        assert value.isfinite().all(), name
        assert value.dtype != torch.bfloat16, name


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('ema_type', ['ExponentialMovingAverage', 'mmdet'])
def test_moving_average_is_validated_and_saved(update_buffers, ema_type, tmp_path):
    hook = dict(EMA, update_buffers=update_buffers)
    if ema_type == 'mmdet':
        pytest.importorskip('mmdet.models')
        hook.update(ema_type='mmdet.ExpMomentumEMA', gamma=5)
    train(make_config(tmp_path, QAT, custom_hooks=[hook]))
    name = tmp_path / f'epoch_{EPOCHS}.pth'
    checkpoint = load(name)
    averaged = checkpoint['state_dict']
    trained = {
        key[len('module.') :]: value
        for key, value in checkpoint['ema_state_dict'].items()
        if key.startswith('module.')
    }
    assert 'backbone.conv.weight' in differences(averaged, trained)
    assert (RANGES[1] in differences(averaged, trained)) == update_buffers
    # The score is that of the average, with and without the hook in the test.
    scores = val_scores(tmp_path)
    assert score_of(name, tmp_path / 'test') == scores[-1]
    assert score_of(name, tmp_path / 'ema', custom_hooks=[hook]) == scores[-1]
    assert scores[-1]['accuracy'] > 0.6

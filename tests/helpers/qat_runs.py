"""Trainings through the Runner, and what they end with."""

from mmengine.runner import Runner
from toy_runner import (
    BATCH_SIZE,
    EPOCHS,
    NUM_TRAIN,
    QAT,
    WatchHook,
    differences,
    load,
    make_config,
    train,
    val_scores,
)

ITERS = NUM_TRAIN // BATCH_SIZE  # in an epoch
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)
RANGES = ('quantization.activations.low', 'quantization.activations.high')


def score_of(checkpoint, work_dir, quantize=QAT, **changes):
    """What ``tools/test.py CONFIG CHECKPOINT`` gives."""
    cfg = make_config(work_dir, quantize, load_from=str(checkpoint), **changes)
    return Runner.from_cfg(cfg).test()


def assert_same_end(work_dir, reference, name=f'epoch_{EPOCHS}.pth'):
    """Weights, ranges, averages, optimizer, schedule and score are the same."""
    ours, theirs = load(work_dir / name), load(reference / name)
    assert not differences(ours['state_dict'], theirs['state_dict'])
    for key, state in theirs['optimizer']['state'].items():
        assert not differences(ours['optimizer']['state'][key], state)
    assert ours['optimizer']['param_groups'] == theirs['optimizer']['param_groups']
    assert ours['param_schedulers'] == theirs['param_schedulers']
    if 'ema_state_dict' in theirs:
        assert not differences(ours['ema_state_dict'], theirs['ema_state_dict'])
    for key in ('epoch', 'iter', 'seed'):
        assert ours['meta'][key] == theirs['meta'][key]
    assert val_scores(work_dir)[-1] == val_scores(reference)[-1]


def watch(cfg):
    """Trains a config, and returns the runner and the hook that watched it."""
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='WatchHook')]
    runner = train(cfg)
    return runner, next(hook for hook in runner.hooks if isinstance(hook, WatchHook))

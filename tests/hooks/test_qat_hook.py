"""What the hook freezes, writes and shares, and when."""

import torch
from mmengine.registry import HOOKS
from toy_runner import (
    BATCH_SIZE,
    EPOCHS,
    NUM_TRAIN,
    QAT,
    log_of,
    make_config,
    scalars,
    state_of,
    train,
)

from mmquant_jacinto.hooks import QATHook

ITERS = NUM_TRAIN // BATCH_SIZE  # in an epoch
RANGES = ('quantization.activations.low', 'quantization.activations.high')


def frozen_from(states, name):
    """The iteration, from 0, from which on a tensor stays as it was."""
    values = [state[name] for state in states]
    same = [torch.equal(value, values[-1]) for value in values]
    return same.index(True) + 1


def test_statistics_and_ranges_freeze_by_epochs_and_the_log_says_so(watched, tmp_path):
    states = watched().states
    for norm in ('backbone.stem_norm', 'backbone.norm'):
        assert frozen_from(states, f'{norm}.running_mean') == 2 * ITERS
        assert frozen_from(states, f'{norm}.running_var') == 2 * ITERS
        # Only statistics freeze.
        assert frozen_from(states, f'{norm}.weight') == EPOCHS * ITERS
    assert frozen_from(states, RANGES[1]) == 4 * ITERS
    log = log_of(tmp_path / 'watched')
    bn = 'statistics of batch normalization frozen from epoch 3 of 6 on'
    ranges = 'activation ranges frozen from epoch 5 of 6 on'
    assert log.count('frozen') == 2
    assert log.index(bn) < log.index(ranges)
    assert log.index('Epoch(train) [2][4/4]') < log.index(bn)
    assert log.index(ranges) < log.index('Epoch(train) [5][1/4]')


def test_statistics_and_ranges_freeze_by_iterations(tmp_path, watched):
    states = watched(iters=24).states
    assert frozen_from(states, 'backbone.norm.running_var') == 10
    assert frozen_from(states, RANGES[1]) == 14
    log = log_of(tmp_path / 'watched')
    assert 'normalization frozen from iteration 11 of 24 on' in log
    assert 'ranges frozen from iteration 15 of 24 on' in log


def test_freeze_key_overrides_the_schedule(watched):
    states = watched(dict(QAT, freeze=dict(bn=False, ranges=1))).states
    assert frozen_from(states, 'backbone.norm.running_var') == EPOCHS * ITERS
    assert frozen_from(states, RANGES[1]) == ITERS


def test_ranges_are_scalars_of_the_visualizer(qat_dir):
    lines = [line for line in scalars(qat_dir) if 'range/head/linear/high' in line]
    assert len(lines) == EPOCHS
    assert 'range/backbone/input/low' in lines[0]
    assert [line['step'] for line in lines] == [
        ITERS * (epoch + 1) for epoch in range(EPOCHS)
    ]
    state = state_of(qat_dir / f'epoch_{EPOCHS}.pth')
    assert lines[-1]['range/head/linear/high'] in state[RANGES[1]].tolist()


def test_ranges_are_written_at_the_interval_of_the_hook(tmp_path):
    hooks = [dict(type='QATHook', interval=3)]
    train(make_config(tmp_path, QAT, iters=8, custom_hooks=hooks))
    steps = [
        line['step'] for line in scalars(tmp_path) if 'range/head/linear/high' in line
    ]
    assert steps[:2] == [3, 6]


def test_hook_is_in_the_registry_and_not_doubled(tmp_path):
    assert HOOKS.get('QATHook') is not None
    hooks = [dict(type='QATHook')]
    runner = train(make_config(tmp_path, QAT, iters=2, custom_hooks=hooks))
    assert [type(hook).__name__ for hook in runner.hooks].count('QATHook') == 1


def test_statistics_are_shared_before_each_checkpoint(tmp_path, monkeypatch):
    shared = []
    monkeypatch.setattr(
        QATHook, '_share_statistics', lambda self, runner: shared.append(runner.iter)
    )
    cfg = make_config(tmp_path, QAT, iters=5)
    cfg.train_cfg.val_interval = 9
    train(cfg)
    saved = sorted(int(path.stem[5:]) for path in tmp_path.glob('iter_*.pth'))
    assert saved[-1] == 5  # not a multiple of the interval
    assert {4, *(step - 1 for step in saved)} <= set(shared)

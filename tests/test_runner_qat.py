"""Quantization aware training, end to end through MMEngine's Runner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint
from run_tools import python_path
from toy_runner import (
    BATCH_SIZE,
    EPOCHS,
    NUM_TRAIN,
    Killed,
    WatchHook,
    differences,
    load,
    log_of,
    make_config,
    scalars,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import (
    QuantizeError,
    QuantRunner,
    QuantTestModule,
    QuantTrainModule,
)
from mmquant_jacinto.hooks import QATHook

QAT = dict(mode='qat', bits=8)
ITERS = NUM_TRAIN // BATCH_SIZE  # in an epoch
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)
RANGES = ('quantization.activations.low', 'quantization.activations.high')


def score_of(checkpoint, work_dir, quantize=QAT, **changes):
    """What ``tools/test.py CONFIG CHECKPOINT`` gives."""
    cfg = make_config(work_dir, quantize, load_from=str(checkpoint), **changes)
    return Runner.from_cfg(cfg).test()


@pytest.fixture(scope='module')
def qat_dir(tmp_path_factory):
    """The work dir of an uninterrupted training by epochs."""
    work_dir = tmp_path_factory.mktemp('qat')
    train(make_config(work_dir, QAT))
    return work_dir


@pytest.fixture
def watched(tmp_path):
    """Trains a changed config and returns the hook that watched it."""

    def run(quantize=QAT, **changes):
        hooks = changes.pop('custom_hooks', [])
        cfg = make_config(
            tmp_path / 'watched',
            quantize,
            custom_hooks=[*hooks, dict(type='WatchHook')],
            **changes,
        )
        runner = train(cfg)
        return next(hook for hook in runner.hooks if isinstance(hook, WatchHook))

    return run


# Activation by config alone


def test_quantize_key_alone_brings_the_quantizing_runner(qat_dir):
    runner = Runner.from_cfg(make_config(qat_dir / 'again', QAT))
    assert type(runner) is QuantRunner
    assert 'quantization.plan' in state_of(qat_dir / f'epoch_{EPOCHS}.pth')


@pytest.mark.parametrize('quantize', ['training', True])
def test_short_forms_of_the_key_train_as_the_full_one(quantize, tmp_path, qat_dir):
    train(make_config(tmp_path, quantize))
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(tmp_path / name), state_of(qat_dir / name))


def test_runner_type_does_without_the_redirect(tmp_path, qat_dir, monkeypatch):
    redirected = Runner.__dict__['from_cfg'].__func__
    monkeypatch.setattr(Runner, 'from_cfg', classmethod(redirected.__wrapped__))
    assert type(Runner.from_cfg(make_config(tmp_path / 'plain', QAT))) is Runner
    runner = RUNNERS.build(make_config(tmp_path, QAT, runner_type='QuantRunner'))
    assert type(runner) is QuantRunner
    runner.train()
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(tmp_path / name), state_of(qat_dir / name))


def test_the_phase_decides_the_wrapper(qat_dir, tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path, QAT))
    runner.train()
    assert type(runner.model) is QuantTrainModule
    cfg = make_config(tmp_path, QAT, load_from=str(qat_dir / 'epoch_1.pth'))
    runner = Runner.from_cfg(cfg)
    runner.test()
    assert type(runner.model) is QuantTestModule


FLOAT_RUN = """
import sys
import torch
torch.set_num_threads(1)
torch.backends.cudnn.deterministic = True
from mmengine.runner import Runner
from toy_runner import make_config
Runner.from_cfg(make_config(sys.argv[1])).train()
assert 'mmquant_jacinto' not in sys.modules
"""


@pytest.fixture(scope='module')
def float_dir(tmp_path_factory):
    """The work dir of a float training in a process without our package."""
    work_dir = tmp_path_factory.mktemp('float')
    subprocess.run(
        [sys.executable, '-c', FLOAT_RUN, str(work_dir)],
        env={**os.environ, 'PYTHONPATH': python_path(Path(__file__).parent)},
        check=True,
        timeout=300,
    )
    return work_dir


@pytest.mark.parametrize(
    ('quantize', 'runner_type'),
    [(None, Runner), (False, Runner), ({}, Runner), (False, QuantRunner)],
)
def test_falsy_or_absent_key_leaves_the_float_run_bit_for_bit(
    quantize, runner_type, float_dir, tmp_path
):
    runner = runner_type.from_cfg(make_config(tmp_path, quantize))
    assert type(runner) is runner_type
    runner.train()
    for name in ('epoch_1.pth', f'epoch_{EPOCHS}.pth'):
        ours, theirs = load(tmp_path / name), load(float_dir / name)
        assert not differences(ours['state_dict'], theirs['state_dict'])
        assert ours.keys() == theirs.keys()
    assert val_scores(tmp_path) == val_scores(float_dir)
    assert [line.keys() for line in scalars(tmp_path)] == [
        line.keys() for line in scalars(float_dir)
    ]
    assert {path.name for path in tmp_path.glob('*.pth')} == {
        path.name for path in float_dir.glob('*.pth')
    }


def test_dumped_config_run_again_does_the_same(qat_dir, tmp_path):
    (dumped,) = qat_dir.glob('*.py')
    cfg = Config.fromfile(dumped)
    cfg.work_dir = str(tmp_path)
    # MMEngine shares the visualizer of runs of one name that start in one second.
    cfg.experiment_name = 'again'
    train(cfg)
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(tmp_path / name), state_of(qat_dir / name))


# Checkpoints and their scores


@pytest.mark.parametrize('epoch', [1, 3, EPOCHS])
def test_checkpoint_tests_with_exactly_the_validation_score(epoch, qat_dir, tmp_path):
    score = score_of(qat_dir / f'epoch_{epoch}.pth', tmp_path)
    assert score == val_scores(qat_dir)[epoch - 1]


def test_training_learns(qat_dir):
    assert val_scores(qat_dir)[-1]['accuracy'] > 0.8


@pytest.mark.parametrize('bits', [16, 4, dict(weight=4, activation=8)])
def test_validation_and_test_agree_at_other_widths(bits, tmp_path):
    quantize = dict(mode='qat', bits=bits)
    train(make_config(tmp_path, quantize, iters=4))
    score = score_of(tmp_path / 'iter_4.pth', tmp_path / 'test', quantize)
    assert score == val_scores(tmp_path)[-1]


def test_checkpoint_is_tested_as_it_was_made(qat_dir, tmp_path):
    checkpoint = qat_dir / f'epoch_{EPOCHS}.pth'
    score = score_of(checkpoint, tmp_path, dict(mode='qat', bits=4))
    assert score == val_scores(qat_dir)[-1]
    assert 'quantize.bits=4 is not what this checkpoint was made with' in log_of(
        tmp_path
    )


def test_weights_load_into_the_plain_float_model(qat_dir, tmp_path):
    state = state_of(qat_dir / f'epoch_{EPOCHS}.pth')
    model = Runner.from_cfg(make_config(tmp_path)).model
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing
    assert all(name.startswith('quantization.') for name in unexpected)
    assert not differences(
        model.state_dict(), {k: v for k, v in state.items() if k not in unexpected}
    )


def test_training_starts_from_a_float_checkpoint(float_dir, tmp_path, watched):
    checkpoint = float_dir / f'epoch_{EPOCHS}.pth'
    hook = watched(load_from=str(checkpoint))
    # A trained model; from scratch the first loss is above ln 10.
    assert hook.losses[0] < 0.5


def test_summary_of_what_is_quantized_is_in_the_log(qat_dir):
    log = log_of(qat_dir)
    assert log.count('Quantization for jacinto:') == 1
    assert 'backbone, head' in log


# Resume


@pytest.mark.parametrize('epoch', [1, 2, 4])
def test_run_resumed_after_an_epoch_ends_as_the_uninterrupted_one(
    epoch, qat_dir, tmp_path
):
    # The epochs are those around which statistics freeze.
    kill = dict(type='KillHook', after_epoch=epoch)
    with pytest.raises(Killed):
        train(make_config(tmp_path, QAT, custom_hooks=[kill]))
    train(make_config(tmp_path, QAT, resume=True))
    assert f'resumed epoch: {epoch}' in log_of(tmp_path)
    assert_same_ends(tmp_path, qat_dir, f'epoch_{EPOCHS}.pth')


def test_run_killed_within_an_epoch_ends_as_the_uninterrupted_one(qat_dir, tmp_path):
    kill = dict(type='KillHook', before_iter=2 * ITERS + 2)
    with pytest.raises(Killed):
        train(make_config(tmp_path, QAT, custom_hooks=[kill]))
    train(make_config(tmp_path, QAT, resume=True))
    assert_same_ends(tmp_path, qat_dir, f'epoch_{EPOCHS}.pth')


@pytest.fixture(scope='module')
def iter_dir(tmp_path_factory):
    """The work dir of an uninterrupted training by iterations."""
    work_dir = tmp_path_factory.mktemp('iter')
    train(make_config(work_dir, QAT, iters=24))
    return work_dir


@pytest.mark.parametrize('iteration', [6, 12, 15])
def test_run_resumed_by_iterations_ends_as_the_uninterrupted_one(
    iteration, iter_dir, tmp_path
):
    # Batch normalization freezes from the 11th iteration on, ranges from the 15th.
    kill = dict(type='KillHook', before_iter=iteration)
    with pytest.raises(Killed):
        train(make_config(tmp_path, QAT, iters=24, custom_hooks=[kill]))
    train(make_config(tmp_path, QAT, iters=24, resume=True))
    assert_same_ends(tmp_path, iter_dir, 'iter_24.pth')


@pytest.mark.parametrize('update_buffers', [False, True])
def test_moving_average_resumes_as_the_uninterrupted_run(update_buffers, tmp_path):
    hooks = [dict(EMA, update_buffers=update_buffers)]
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(make_config(whole, QAT, custom_hooks=hooks))
    kill = dict(type='KillHook', after_epoch=3)
    with pytest.raises(Killed):
        train(make_config(parts, QAT, custom_hooks=[*hooks, kill]))
    train(make_config(parts, QAT, custom_hooks=hooks, resume=True))
    name = f'epoch_{EPOCHS}.pth'
    assert_same_ends(parts, whole, name)
    first, second = (load(d / name)['ema_state_dict'] for d in (parts, whole))
    assert not differences(first, second)


def assert_same_ends(work_dir, reference, name):
    """Weights, ranges, statistics, optimizer and scores are the same."""
    ours, theirs = load(work_dir / name), load(reference / name)
    assert not differences(ours['state_dict'], theirs['state_dict'])
    ours, theirs = (item['optimizer']['state'] for item in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for key, state in ours.items():
        assert not differences(state, theirs[key])
    assert val_scores(work_dir)[-1] == val_scores(reference)[-1]


# Ways of training


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
    assert scores[-1]['accuracy'] > 0.7


# Freezing


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


# What the visualizer gets


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


# Saving


class KilledBackend:
    """Writes half of a checkpoint and ends the run, as a full disk would."""

    def __init__(self, monkeypatch, name):
        put = LocalBackend.put

        def put_half(backend, data, path):
            if name in str(path):
                put(backend, data[: len(data) // 2], path)
                raise Killed
            put(backend, data, path)

        monkeypatch.setattr(LocalBackend, 'put', put_half)


def test_killed_save_leaves_no_half_checkpoint(qat_dir, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        KilledBackend(patch, 'epoch_4.pth')
        with pytest.raises(Killed):
            train(make_config(tmp_path, QAT))
    assert not (tmp_path / 'epoch_4.pth').exists()
    assert find_latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_3.pth')
    train(make_config(tmp_path, QAT, resume=True))
    assert_same_ends(tmp_path, qat_dir, f'epoch_{EPOCHS}.pth')
    assert not list(tmp_path.glob('*.part'))


def test_killed_save_leaves_the_previous_file_of_that_name(
    qat_dir, tmp_path, monkeypatch
):
    train(make_config(tmp_path, QAT, iters=2))
    before = (tmp_path / 'iter_2.pth').read_bytes()
    KilledBackend(monkeypatch, 'iter_2.pth')
    with pytest.raises(Killed):
        train(make_config(tmp_path, QAT, iters=2))
    assert (tmp_path / 'iter_2.pth').read_bytes() == before


def test_best_checkpoint_is_the_best_score(tmp_path):
    checkpoint = dict(save_best='accuracy', rule='greater', max_keep_ckpts=1)
    train(make_config(tmp_path, QAT, default_hooks=dict(checkpoint=checkpoint)))
    (best,) = tmp_path.glob('best_accuracy_epoch_*.pth')
    scores = val_scores(tmp_path)
    epoch = int(best.stem.rpartition('_')[2])
    assert scores[epoch - 1]['accuracy'] == max(s['accuracy'] for s in scores)
    assert score_of(best, tmp_path / 'test') == scores[epoch - 1]
    assert [path.name for path in tmp_path.glob('epoch_*')] == [f'epoch_{EPOCHS}.pth']


def test_resuming_with_other_quantization_is_refused(qat_dir, tmp_path):
    cfg = make_config(
        tmp_path,
        dict(mode='qat', bits=4),
        resume=True,
        load_from=str(qat_dir / 'epoch_1.pth'),
    )
    with pytest.raises(QuantizeError, match='another quantization plan.*load_from'):
        train(cfg)


# Learned scales


@pytest.fixture(scope='module')
def learned_dir(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('learned')
    train(make_config(work_dir, LEARNED))
    return work_dir


LEARNED = dict(mode='qat', bits=4, target='onnxruntime', learned_scale=True)


def test_learned_scales_have_a_learning_rate_of_their_own(learned_dir, tmp_path):
    cfg = make_config(tmp_path, LEARNED)
    cfg.train_cfg.max_epochs = 1
    runner = train(cfg)
    groups = runner.optim_wrapper.optimizer.param_groups
    learned = [
        p for name, p in runner.model.named_parameters() if 'quantization.' in name
    ]
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    assert len(learned) == 3
    assert {rates[id(p)] for p in learned} == {10 * min(rates.values())}
    decays = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    assert {decays[id(p)] for p in learned} == {0.0}


def test_learned_scales_start_from_calibrated_ranges(learned_dir):
    assert 'Ranges that training starts from' in log_of(learned_dir)
    first, last = (
        state_of(learned_dir / f'epoch_{epoch}.pth') for epoch in (1, EPOCHS)
    )
    for name in ('activations.low', 'activations.high', 'weight_scale'):
        name = f'quantization.{name}'
        assert first[name].any()
        assert torch.equal(first[name], last[name])
    for name in ('activations.learned.log2_scale', 'learned.log2_scale'):
        name = f'quantization.{name}'
        assert not torch.equal(first[name], last[name])


def test_checkpoint_of_learned_scales_tests_with_the_validation_score(
    learned_dir, tmp_path
):
    path = learned_dir / f'epoch_{EPOCHS}.pth'
    assert score_of(path, tmp_path) == val_scores(learned_dir)[-1]


def test_run_with_learned_scales_that_is_killed_ends_as_the_other(
    learned_dir, tmp_path
):
    path = str(learned_dir / 'epoch_2.pth')
    train(make_config(tmp_path, LEARNED, load_from=path, resume=True))
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(tmp_path / name), state_of(learned_dir / name))


# Equalization


@pytest.fixture(scope='module')
def equalized_dir(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('equalized')
    train(equalized_config(work_dir))
    return work_dir


def equalized_config(work_dir, **changes):
    changes = {'model.hidden': 16, 'custom_hooks': [dict(type='EMAHook')], **changes}
    return make_config(work_dir, dict(mode='qat', equalize=True), **changes)


def test_equalized_run_that_is_killed_ends_as_the_other(equalized_dir, tmp_path):
    # The weights of its checkpoint are equalized already.
    path = str(equalized_dir / 'epoch_2.pth')
    assert state_of(path)['quantization.equalized']
    train(equalized_config(tmp_path, load_from=path, resume=True))
    name = f'epoch_{EPOCHS}.pth'
    assert not differences(state_of(tmp_path / name), state_of(equalized_dir / name))


def test_average_of_equalized_weights_is_of_nothing_else(equalized_dir):
    # A mean of weights before and after it would be another function.
    average = load(equalized_dir / 'epoch_1.pth')['state_dict']
    present = load(equalized_dir / 'epoch_1.pth')['ema_state_dict']
    for name in ('head.0.weight', 'head.2.weight'):
        other = present['module.' + name]
        assert (average[name] - other).norm() < 0.1 * other.norm()

"""Calibration, end to end through MMEngine's Runner."""

import functools
import io

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import LOOPS
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.utils import ProgressBar
from ptq_runs import ptq_config
from toy_runner import (
    PTQ,
    Killed,
    differences,
    load,
    log_of,
    make_config,
    scalars,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import CalibrationLoop, QuantCalibrateModule, QuantizeError

CHECKPOINT = 'epoch_1.pth'


def test_calibration_leaves_one_checkpoint_that_is_the_last(ptq_dir):
    assert [path.name for path in ptq_dir.glob('*.pth')] == [CHECKPOINT]
    assert find_latest_checkpoint(str(ptq_dir)) == str(ptq_dir / CHECKPOINT)
    assert not list(ptq_dir.glob('*.part'))


def test_weights_stay_those_of_the_float_checkpoint_bit_for_bit(
    float_checkpoint, ptq_dir
):
    ours, theirs = state_of(ptq_dir / CHECKPOINT), state_of(float_checkpoint)
    assert all(name.startswith('quantization.') for name in differences(ours, theirs))
    checkpoint = load(ptq_dir / CHECKPOINT)
    assert 'optimizer' not in checkpoint
    assert 'param_schedulers' not in checkpoint


def test_calibration_ends_with_a_validation_near_the_float_score(
    float_checkpoint, ptq_dir
):
    (score,) = val_scores(ptq_dir)
    float_score = val_scores(float_checkpoint.parent)[-1]
    assert score['accuracy'] >= float_score['accuracy'] - 0.05
    assert score['norm'] == pytest.approx(float_score['norm'], rel=0.05)
    assert score['norm'] != float_score['norm']


@pytest.mark.parametrize('mode', ['ptq', 'qat'])
def test_checkpoint_tests_with_exactly_the_validation_score(mode, ptq_dir, tmp_path):
    cfg = ptq_config(tmp_path, ptq_dir / CHECKPOINT, dict(mode=mode, bits=8))
    assert Runner.from_cfg(cfg).test() == val_scores(ptq_dir)[0]


def test_calibration_repeated_gives_the_state_bit_for_bit(
    float_checkpoint, ptq_dir, tmp_path
):
    train(ptq_config(tmp_path, float_checkpoint, 'calibration'))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_dumped_config_run_again_does_the_same(ptq_dir, tmp_path):
    (dumped,) = ptq_dir.glob('*.py')
    cfg = Config.fromfile(dumped)
    cfg.work_dir = str(tmp_path)
    # MMEngine shares the visualizer of runs of one name that start in one second.
    cfg.experiment_name = 'again'
    train(cfg)
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_wrapper_and_loop_are_those_of_the_registries(float_checkpoint, tmp_path):
    runner = train(ptq_config(tmp_path, float_checkpoint))
    assert type(runner.model) is QuantCalibrateModule
    assert type(runner.train_loop) is LOOPS.get('CalibrationLoop') is CalibrationLoop


@pytest.mark.parametrize('update_buffers', [False, True])
def test_moving_average_does_not_disturb(
    update_buffers, float_checkpoint, ptq_dir, tmp_path
):
    hook = dict(type='EMAHook', momentum=0.5, update_buffers=update_buffers)
    train(ptq_config(tmp_path, float_checkpoint, custom_hooks=[hook]))
    checkpoint = load(tmp_path / CHECKPOINT)
    assert not differences(checkpoint['state_dict'], state_of(ptq_dir / CHECKPOINT))
    assert 'ema_state_dict' not in checkpoint
    assert val_scores(tmp_path) == val_scores(ptq_dir)
    cfg = ptq_config(tmp_path / 'test', tmp_path / CHECKPOINT, custom_hooks=[hook])
    assert Runner.from_cfg(cfg).test() == val_scores(ptq_dir)[0]


def test_config_by_iterations_calibrates_the_same(float_checkpoint, ptq_dir, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint, iters=4))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_resumed_finished_calibration_only_validates(
    float_checkpoint, ptq_dir, tmp_path
):
    train(ptq_config(tmp_path, float_checkpoint))
    written = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    cfg = ptq_config(tmp_path, float_checkpoint, resume=True)
    cfg.load_from = None
    train(cfg)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == written
    assert val_scores(tmp_path) == 2 * val_scores(ptq_dir)
    assert 'calibrated already' in log_of(tmp_path)


def test_finished_calibration_is_not_fine_tuned_by_resuming_it(
    float_checkpoint, tmp_path
):
    cfg = ptq_config(tmp_path, float_checkpoint)
    # What else would tell the plans apart.
    cfg.quantize.update(weight_observer='minmax')
    train(cfg)
    cfg = ptq_config(tmp_path, float_checkpoint, resume=True)
    cfg.load_from = None
    cfg.quantize.update(weight_observer='minmax', finetune=True)
    with pytest.raises(QuantizeError, match='finetune=.*over, and was not fine-tuned'):
        train(cfg)


def test_calibration_killed_and_run_again_ends_the_same(
    float_checkpoint, ptq_dir, tmp_path, monkeypatch
):
    steps = []
    step = QuantCalibrateModule.calibrate_step

    def killed_step(*args):
        steps.append(args)
        if len(steps) == 6:
            raise Killed
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(QuantCalibrateModule, 'calibrate_step', killed_step)
        with pytest.raises(Killed):
            train(ptq_config(tmp_path, float_checkpoint))
    assert not (tmp_path / CHECKPOINT).exists()
    train(ptq_config(tmp_path, float_checkpoint))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, ptq_dir))
    assert not differences(ours, theirs)


def test_uninitialized_weights_are_warned_of(tmp_path):
    train(make_config(tmp_path, PTQ))
    assert 'set load_from to a float checkpoint' in log_of(tmp_path)


def test_progress_is_shown_with_the_time_left(float_checkpoint, tmp_path, monkeypatch):
    out = io.StringIO()
    # Its default, the stdout of when it was imported, is not pytest's of today.
    monkeypatch.setattr(
        'mmquant_jacinto.runners.calibration_loop.ProgressBar',
        functools.partial(ProgressBar, file=out),
    )
    train(ptq_config(tmp_path, float_checkpoint))
    assert out.getvalue().count('4/4') == 2
    assert 'ETA' in out.getvalue()


def test_log_has_the_passes_and_the_ranges(ptq_dir):
    assert 'Calibration of ranges: 4 batches of 16 images' in log_of(ptq_dir)
    assert 'Calibration of biases, pass 1' in log_of(ptq_dir)
    (line,) = (line for line in scalars(ptq_dir) if 'range/head/linear/high' in line)
    high = state_of(ptq_dir / CHECKPOINT)['quantization.activations.high']
    assert line['range/head/linear/high'] in high.tolist()


def test_sixteen_bits_are_nearer_to_float_than_four(float_checkpoint, tmp_path):
    exact = val_scores(float_checkpoint.parent)[-1]['norm']
    errors = []
    for bits in (16, 8, 4):
        work_dir = tmp_path / str(bits)
        train(ptq_config(work_dir, float_checkpoint, dict(mode='ptq', bits=bits)))
        errors.append(abs(val_scores(work_dir)[0]['norm'] - exact))
    assert errors == sorted(errors)
    assert errors[0] < 0.01 * exact
    assert torch.tensor(errors).isfinite().all()


def test_the_loop_holds_an_eighth_back(float_checkpoint, tmp_path, monkeypatch):
    held, given = [], []
    step = QuantCalibrateModule.calibrate_step
    judge = QuantCalibrateModule.judge_corrections

    def noted_step(self, batch, reference, lr, is_held_out):
        held.append((reference is not None, is_held_out))
        return step(self, batch, reference, lr, is_held_out)

    def noted_judge(self, batches):
        given.append(len(batches))
        return judge(self, batches)

    monkeypatch.setattr(QuantCalibrateModule, 'calibrate_step', noted_step)
    monkeypatch.setattr(QuantCalibrateModule, 'judge_corrections', noted_judge)
    cfg = ptq_config(tmp_path, float_checkpoint)
    cfg.val_dataloader.batch_size = 4
    train(cfg)
    flags = [True] * 2 + [False] * 14
    assert held == [(False, flag) for flag in flags] + [(True, flag) for flag in flags]
    assert given == [2]
    assert 'Corrections: on 2 batches that they did not see' in log_of(tmp_path)

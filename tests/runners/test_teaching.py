"""The float checkpoint as the teacher of a run: when, what is kept of it, on resume."""

import shutil

import pytest
import torch
from mmengine.runner import Runner
from ptq_runs import ptq_config
from toy_runner import (
    EPOCHS,
    QAT,
    Killed,
    differences,
    load,
    log_of,
    make_config,
    state_of,
    train,
)

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.runners.starting import teaching

LAST = f'epoch_{EPOCHS}.pth'
DROPOUT = {'model.dropout': 0.3}


def run(work_dir, load_from, distill=None, **changes):
    quantize = dict(QAT, target='onnxruntime')
    if distill is not None:
        quantize['distill'] = distill
    start = None if load_from is None else str(load_from)
    return train(make_config(work_dir, quantize, load_from=start, **changes))


@pytest.fixture(scope='module')
def taught_dir(float_checkpoint, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('taught')
    run(work_dir, float_checkpoint, **DROPOUT)
    return work_dir


def test_a_float_checkpoint_teaches_by_itself(float_checkpoint, taught_dir):
    log = log_of(taught_dir)
    assert f'Self-distillation: {float_checkpoint} teaches' in log
    assert 'loss_teacher: ' in log
    assert 'batch normalization frozen from epoch 1 of' in log
    noted = load(taught_dir / LAST)['meta'][teaching.TEACHER]
    assert noted['path'] == str(float_checkpoint)
    weights, stored = {}, state_of(float_checkpoint)
    for name, value in stored.items():
        weights[name] = value
    assert noted['digest'] == teaching.digest(weights)
    weights['head.bias'] = weights['head.bias'] + 1e-6
    assert noted['digest'] != teaching.digest(weights)


@pytest.mark.parametrize('distill', [None, False])
def test_from_scratch_or_switched_off_there_is_none(
    distill, float_checkpoint, tmp_path
):
    start = None if distill is None else float_checkpoint
    run(tmp_path, start, distill)
    log = log_of(tmp_path)
    assert 'loss_teacher' not in log and 'Self-distillation' not in log
    assert teaching.TEACHER not in load(tmp_path / LAST)['meta']


def test_many_labels_need_no_teacher(float_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(teaching, 'FEW_IMAGES', 63)
    run(tmp_path / 'none', float_checkpoint)
    assert 'No self-distillation: 64 training images are' in log_of(tmp_path / 'none')
    run(tmp_path / 'asked', float_checkpoint, True)
    assert 'loss_teacher: ' in log_of(tmp_path / 'asked')


def test_a_calibrated_checkpoint_cannot_teach(float_checkpoint, ptq_dir, tmp_path):
    start = ptq_dir / 'epoch_1.pth'
    run(tmp_path / 'none', start)
    assert 'cannot teach, it is quantized' in log_of(tmp_path / 'none')
    with pytest.raises(QuantizeError, match='epoch_1.pth cannot teach: it is quant'):
        run(tmp_path / 'refused', start, True)
    run(tmp_path / 'named', start, dict(checkpoint=str(float_checkpoint)))
    assert f'{float_checkpoint} teaches' in log_of(tmp_path / 'named')


def test_a_part_of_a_model_cannot_teach(float_checkpoint, tmp_path):
    checkpoint = load(float_checkpoint)
    del checkpoint['state_dict']['head.bias']
    part = tmp_path / 'part.pth'
    torch.save(checkpoint, part)
    run(tmp_path / 'none', part)
    assert f'{part} cannot teach, it has no head.bias' in log_of(tmp_path / 'none')
    with pytest.raises(QuantizeError, match='cannot teach: it has no head.bias'):
        run(tmp_path / 'refused', part, True)
    options = {'model.channels': 16}
    with pytest.raises(QuantizeError, match='cannot teach: it is of another model'):
        run(
            tmp_path / 'other',
            None,
            dict(checkpoint=str(float_checkpoint)),
            **options,
        )


def test_without_a_checkpoint_nobody_teaches(tmp_path):
    with pytest.raises(QuantizeError, match='quantize.distill is on, and there is no'):
        run(tmp_path, None, True)


def interrupted(work_dir, load_from, **changes):
    hooks = [dict(type='KillHook', after_epoch=3)]
    with pytest.raises(Killed):
        run(work_dir, load_from, custom_hooks=hooks, **changes)


def resumed(work_dir, load_from=None, distill=None):
    return run(work_dir, load_from, distill, resume=True, **DROPOUT)


def test_a_run_that_is_resumed_has_the_same_teacher(
    float_checkpoint, taught_dir, tmp_path
):
    interrupted(tmp_path, float_checkpoint, **DROPOUT)
    resumed(tmp_path)
    assert differences(state_of(tmp_path / LAST), state_of(taught_dir / LAST)) == []


def test_a_teacher_that_is_gone_or_another_is_refused(float_checkpoint, tmp_path):
    start = tmp_path / 'start.pth'
    shutil.copy(float_checkpoint, start)
    work_dir = tmp_path / 'run'
    interrupted(work_dir, start, **DROPOUT)
    start.unlink()
    with pytest.raises(QuantizeError, match='start.pth is not there'):
        resumed(work_dir)
    checkpoint = load(float_checkpoint)
    checkpoint['state_dict']['head.bias'] += 1
    torch.save(checkpoint, start)
    with pytest.raises(QuantizeError, match='is not the float checkpoint that taught'):
        resumed(work_dir)


def test_a_teacher_that_joins_later_is_refused(float_checkpoint, tmp_path):
    hooks = [dict(type='KillHook', after_epoch=3)]
    with pytest.raises(Killed):
        run(tmp_path, float_checkpoint, False, custom_hooks=hooks, **DROPOUT)
    with pytest.raises(QuantizeError, match='the training that is resumed had no'):
        resumed(tmp_path, None, True)
    resumed(tmp_path)  # by itself it goes on without
    assert 'loss_teacher' not in log_of(tmp_path)


def test_averaged_weights_are_not_taught(float_checkpoint, tmp_path):
    hooks = [dict(type='EMAHook')]
    runner = run(tmp_path, float_checkpoint, custom_hooks=hooks)
    model = next(h.ema_model for h in runner.hooks if hasattr(h, 'ema_model'))
    names = [name for name, _ in model.named_parameters()]
    assert names and not any('teacher' in name for name in names)
    assert 'loss_teacher: ' in log_of(tmp_path)


@pytest.mark.parametrize(
    'distill, words',
    [
        (dict(weight=0), 'quantize.distill.weight=0 is not a positive number'),
        (dict(checkpoint=3), 'quantize.distill.checkpoint=3 is no path'),
        (dict(weigth=3), "did you mean 'weight'"),
        ('float.pth', "quantize.distill='float.pth' is not a dict"),
    ],
)
def test_bad_values(distill, words, refused_training):
    refused_training(dict(QAT, distill=distill), words)


def test_a_calibration_has_no_teacher(float_checkpoint, tmp_path):
    cfg = ptq_config(tmp_path, float_checkpoint, dict(mode='ptq', distill=True))
    with pytest.raises(QuantizeError, match='quantize.distill is for a run that'):
        Runner.from_cfg(cfg)

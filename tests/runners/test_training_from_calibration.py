"""Training from a calibrated checkpoint, and what may not follow on what."""

import pytest
import torch
from mmengine.runner import Runner
from ptq_runs import ptq_config
from toy_runner import QAT, Killed, differences, log_of, state_of, train, val_scores

from mmquant_jacinto import QuantizeError

CHECKPOINT = 'epoch_1.pth'


def first_state(work_dir, checkpoint, **quantize):
    """The model at the start of a training, after the checkpoint is loaded."""
    cfg = ptq_config(
        work_dir,
        checkpoint,
        dict(QAT, **quantize),
        custom_hooks=[dict(type='KillHook', before_iter=1)],
    )
    runner = Runner.from_cfg(cfg)
    with pytest.raises(Killed):
        runner.train()
    return runner.model.module.state_dict()


def test_training_takes_weights_and_ranges_of_the_same_plan(ptq_dir, tmp_path):
    state = first_state(tmp_path, ptq_dir / CHECKPOINT)
    # How ranges are followed is the training's own.
    changed = differences(state, state_of(ptq_dir / CHECKPOINT))
    assert changed == ['quantization.plan']


def test_training_with_learned_scales_takes_the_calibrated_ranges(ptq_dir, tmp_path):
    stored = state_of(ptq_dir / CHECKPOINT)
    state = first_state(tmp_path, ptq_dir / CHECKPOINT, learned_scale=True)
    names = [name for name in stored if not name.endswith('.plan')]
    assert all(torch.equal(state[name].cpu(), stored[name].cpu()) for name in names)


@pytest.mark.parametrize(
    'quantize', [dict(bits=4), dict(target='onnxruntime'), dict(overrides={'head': 16})]
)
def test_training_takes_only_the_weights_of_another_plan(quantize, ptq_dir, tmp_path):
    state = first_state(tmp_path, ptq_dir / CHECKPOINT, **quantize)
    stored = state_of(ptq_dir / CHECKPOINT)
    changed = differences(state, stored)
    assert all(name.startswith('quantization.') for name in changed)
    log = log_of(tmp_path)
    assert 'belong to another quantization plan' in log
    # As from a float checkpoint, they are measured before the first step.
    assert 'Ranges that training starts from' in log
    assert state['quantization.activations.count'].all()


def test_training_from_a_calibrated_checkpoint_learns(ptq_dir, tmp_path):
    train(ptq_config(tmp_path, ptq_dir / CHECKPOINT, QAT, iters=4))
    score = val_scores(ptq_dir)[0]['accuracy']
    assert val_scores(tmp_path)[-1]['accuracy'] > score - 0.1


def test_resuming_a_calibration_with_other_bits_is_refused(ptq_dir, tmp_path):
    cfg = ptq_config(
        tmp_path, ptq_dir / CHECKPOINT, dict(mode='ptq', bits=4), resume=True
    )
    with pytest.raises(QuantizeError, match='another quantization plan'):
        train(cfg)


def test_a_run_of_the_other_mode_is_not_resumed(float_checkpoint, tmp_path):
    train(ptq_config(tmp_path, float_checkpoint))
    train(ptq_config(tmp_path / 'qat', float_checkpoint, QAT, iters=2))
    for work_dir, quantize, mode in (
        (tmp_path, QAT, 'ptq'),
        (tmp_path / 'qat', dict(mode='ptq'), 'qat'),
    ):
        cfg = ptq_config(work_dir, float_checkpoint, quantize, resume=True)
        cfg.load_from = None
        with pytest.raises(QuantizeError, match=f"mode='{mode}', which one with"):
            train(cfg)


def test_what_is_calibrated_is_not_calibrated_again(ptq_dir, tmp_path):
    for bits in (8, 4):
        cfg = ptq_config(tmp_path, ptq_dir / CHECKPOINT, dict(mode='ptq', bits=bits))
        with pytest.raises(QuantizeError, match='epoch_1.pth is calibrated already'):
            train(cfg)


def test_calibration_of_a_trained_checkpoint_starts_anew(float_checkpoint, tmp_path):
    untaught = dict(QAT, distill=False)
    train(ptq_config(tmp_path / 'qat', float_checkpoint, untaught, iters=2))
    trained = tmp_path / 'qat' / 'iter_2.pth'
    stored = state_of(trained)
    weights = {k: v for k, v in stored.items() if not k.startswith('quantization.')}
    torch.save(dict(state_dict=weights), tmp_path / 'weights.pth')
    states = []
    for start in (trained, tmp_path / 'weights.pth'):
        work_dir = tmp_path / start.stem
        train(ptq_config(work_dir, start))
        states.append(state_of(work_dir / CHECKPOINT))
    assert not differences(*states)


def test_a_taught_checkpoint_is_calibrated_already(float_checkpoint, tmp_path):
    train(ptq_config(tmp_path / 'qat', float_checkpoint, QAT, iters=2))
    cfg = ptq_config(tmp_path / 'ptq', tmp_path / 'qat' / 'iter_2.pth')
    with pytest.raises(QuantizeError, match='is calibrated already; calibrate the fl'):
        train(cfg)


def test_live_statistics_take_the_place_of_corrections(ptq_dir, tmp_path):
    key = 'quantization.bias_correction'
    assert state_of(ptq_dir / CHECKPOINT)[key].all()
    corrections = []
    for name, freeze in (('live', dict(bn=False)), ('frozen', dict(bn=0))):
        cfg = ptq_config(
            tmp_path / name, ptq_dir / CHECKPOINT, dict(QAT, freeze=freeze), iters=2
        )
        corrections.append(train(cfg).model.module.state_dict()[key])
    live, frozen = corrections
    assert torch.equal(frozen.cpu(), state_of(ptq_dir / CHECKPOINT)[key].cpu())
    # Layers without a normalization keep theirs.
    assert 0 < (live == 0).sum() < len(live)
    assert torch.equal(live[live != 0], frozen[live != 0])

"""Trainings with learned scales through the Runner."""

import pytest
import torch
from qat_runs import score_of
from toy_runner import (
    EPOCHS,
    differences,
    log_of,
    make_config,
    state_of,
    train,
    val_scores,
)


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

"""Quantization aware training, end to end through MMEngine's Runner."""

import os
import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from paths import HELPERS
from qat_runs import score_of
from run_tools import python_path
from toy_runner import (
    EPOCHS,
    QAT,
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
# As the tests have it on a GPU.
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.allow_tf32 = False
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
        env={**os.environ, 'PYTHONPATH': python_path(HELPERS)},
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


def test_resuming_with_other_quantization_is_refused(qat_dir, tmp_path):
    cfg = make_config(
        tmp_path,
        dict(mode='qat', bits=4),
        resume=True,
        load_from=str(qat_dir / 'epoch_1.pth'),
    )
    with pytest.raises(QuantizeError, match='another quantization plan.*load_from'):
        train(cfg)

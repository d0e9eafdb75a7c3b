"""Runs that are killed, and what becomes of them when they are resumed."""

import pytest
from fault_runs import random_config
from killed_runs import end, kill, resume
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from qat_runs import assert_same_end
from toy_runner import (
    EPOCHS,
    PTQ,
    QAT,
    Killed,
    differences,
    load,
    log_of,
    make_config,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import QuantizeError

# Statistics of normalizations freeze from iteration 9 (by iterations: 11) on, and
# ranges from 17 (15) on. The kills fall into those epochs, and into the first, in
# which there is no checkpoint yet.
BY_EPOCH = dict(quantize=QAT)
WORKERS = dict(quantize=QAT, workers=2)
BY_ITERATION = dict(quantize=QAT, iters=24)
AVERAGED = dict(
    quantize=QAT,
    custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)],
    **{'optim_wrapper.accumulative_counts': 3},
)


@pytest.fixture(scope='module')
def whole_dir(tmp_path_factory):
    """The work dir of an uninterrupted training by epochs."""
    work_dir = tmp_path_factory.mktemp('whole')
    train(random_config(work_dir, **BY_EPOCH))
    return work_dir


@pytest.mark.parametrize('where', ['iteration:11', 'saving:epoch_4.pth'])
def test_killed_training_ends_as_the_uninterrupted_one(where, whole_dir, tmp_path):
    kill(tmp_path, where, **BY_EPOCH)
    resume(tmp_path, **BY_EPOCH)
    assert_same_end(tmp_path, whole_dir)


@pytest.mark.parametrize('iteration', [3, 18])
def test_training_ended_in_any_epoch_ends_as_the_uninterrupted_one(
    iteration, whole_dir, tmp_path
):
    end(tmp_path, iteration, **BY_EPOCH)
    resume(tmp_path, **BY_EPOCH)
    assert_same_end(tmp_path, whole_dir)


@pytest.mark.parametrize(
    ('iteration', 'options'),
    [(19, WORKERS), (15, BY_ITERATION), (14, AVERAGED)],
    ids=['workers', 'iterations', 'averaged'],
)
def test_other_trainings_end_as_the_uninterrupted_ones(iteration, options, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(random_config(whole, **options))
    end(parts, iteration, **options)
    resume(parts, **options)
    iters = options.get('iters')
    assert_same_end(parts, whole, f'iter_{iters}.pth' if iters else 'epoch_6.pth')


@HOOKS.register_module()
class KillValidationHook(Hook):
    """Ends the run in the middle of a validation, counted from 1."""

    def __init__(self, number):
        self.number = number

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.number -= batch_idx == 0
        if self.number == 0:
            raise Killed


@pytest.mark.parametrize('number', [2, EPOCHS])
@pytest.mark.parametrize('iters', [None, 2 * EPOCHS])
def test_validation_that_was_cut_off_is_made_up_for(number, iters, tmp_path):
    best = dict(save_best='norm', rule='less')
    options = dict(quantize=QAT, iters=iters, default_hooks=dict(checkpoint=best))
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(random_config(whole, **options))
    cfg = random_config(parts, **options)
    cfg.custom_hooks = [dict(type='KillValidationHook', number=number)]
    with pytest.raises(Killed):
        train(cfg)
    resume(parts, **options)
    assert_same_end(parts, whole, f'iter_{iters}.pth' if iters else 'epoch_6.pth')
    assert val_scores(parts) == val_scores(whole)
    names = [sorted(path.name for path in d.glob('best*')) for d in (parts, whole)]
    assert names[0] == names[1] != []


def test_validation_is_not_repeated_where_it_was_complete(tmp_path):
    # The best checkpoint is saved after its validation, and the last one again.
    best = dict(save_best='accuracy', rule='greater')
    options = dict(quantize=QAT, default_hooks=dict(checkpoint=best))
    options['train_cfg.max_epochs'] = 1
    train(random_config(tmp_path, **options))
    resume(tmp_path, **options)
    assert len(val_scores(tmp_path)) == 1


def test_seed_that_nobody_chose_is_taken_up(tmp_path):
    options = dict(quantize=QAT, randomness=dict(seed=None))
    parts = tmp_path / 'parts'
    end(parts, 11, **options)
    whole = tmp_path / 'whole'
    seed = load(parts / 'epoch_2.pth')['meta']['seed']
    train(random_config(whole, quantize=QAT, randomness=dict(seed=seed)))
    resume(parts, **options)
    assert_same_end(parts, whole)


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('float')
    train(make_config(work_dir, iters=4))
    return str(work_dir / 'iter_4.pth')


def test_killed_calibration_starts_again_to_the_same_end(float_checkpoint, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(random_config(whole, PTQ, load_from=float_checkpoint))
    kill(parts, 'calibrating:7', quantize=PTQ, load_from=float_checkpoint)
    # The tools' --resume removes load_from, and there is no checkpoint.
    resume(parts, quantize=PTQ)
    ours, theirs = (state_of(folder / 'epoch_1.pth') for folder in (parts, whole))
    assert not differences(ours, theirs)
    assert val_scores(parts) == val_scores(whole)


def test_training_killed_before_its_first_checkpoint_starts_where_it_started(
    float_checkpoint, tmp_path
):
    kill_first = [dict(type='KillHook', before_iter=2)]
    cfg = make_config(
        tmp_path, QAT, iters=2, load_from=float_checkpoint, custom_hooks=kill_first
    )
    with pytest.raises(Killed):
        train(cfg)
    train(make_config(tmp_path, QAT, iters=2, resume=True))
    assert f'starting again from {float_checkpoint}' in log_of(tmp_path)
    whole = tmp_path / 'whole'
    train(make_config(whole, QAT, iters=2, load_from=float_checkpoint))
    ours, theirs = (state_of(folder / 'iter_2.pth') for folder in (tmp_path, whole))
    assert not differences(ours, theirs)


@pytest.mark.parametrize('quantize', [QAT, PTQ], ids=['qat', 'ptq'])
def test_run_with_nothing_to_resume_is_refused(quantize, tmp_path):
    cfg = make_config(tmp_path, quantize, resume=True)
    with pytest.raises(QuantizeError, match='nothing to resume.*load_from='):
        train(cfg)
    assert not list(tmp_path.glob('*.pth'))


def run_of_file(work_dir, load_from):
    """What the usual train.py makes of ``--resume`` and a config file."""
    path = work_dir / 'config.py'
    work_dir.mkdir()
    make_config(work_dir, QAT, iters=2, load_from=load_from).dump(str(path))
    cfg = Config.fromfile(str(path))
    cfg.resume, cfg.load_from = True, None
    return cfg


def test_run_that_never_began_starts_from_the_config_file(float_checkpoint, tmp_path):
    parts, whole = tmp_path / 'parts', tmp_path / 'whole'
    train(run_of_file(parts, str(float_checkpoint)))
    assert f'starting again from {float_checkpoint}' in log_of(parts)
    train(make_config(whole, QAT, iters=2, load_from=str(float_checkpoint)))
    ours, theirs = (state_of(folder / 'iter_2.pth') for folder in (parts, whole))
    assert not differences(ours, theirs)


def test_start_named_on_the_command_line_is_not_guessed(
    float_checkpoint, tmp_path, monkeypatch
):
    cfg = run_of_file(tmp_path / 'run', str(float_checkpoint))
    line = ['train.py', 'config.py', '--resume', '--cfg-options', 'load_from=b.pth']
    monkeypatch.setattr('sys.argv', line)
    with pytest.raises(QuantizeError, match='nothing to resume'):
        train(cfg)

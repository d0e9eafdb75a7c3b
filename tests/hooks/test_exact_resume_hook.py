"""Runs that are killed, and what becomes of them when they are resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from fault_runs import random_config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from paths import HELPERS
from toy_runner import (
    EPOCHS,
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
from mmquant_jacinto.runners.checkpoint_files import latest_checkpoint

QAT = dict(mode='qat', bits=8)
PTQ = dict(mode='ptq', bits=8)
SCRIPT = HELPERS / 'fault_runs.py'
TIMEOUT = 300


def kill(work_dir, where, **options):
    """Runs :func:`random_config` as a process until it kills itself."""
    done = subprocess.run(
        [sys.executable, SCRIPT, work_dir, where, json.dumps(options)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout[-5000:]


def end(work_dir, iteration, **options):
    """Runs it here until an exception ends it, which is faster."""
    cfg = random_config(work_dir, **options)
    cfg.custom_hooks = [
        *cfg.custom_hooks,
        dict(type='KillHook', before_iter=iteration),
    ]
    with pytest.raises(Killed):
        train(cfg)


def resume(work_dir, **options):
    """What ``tools/train.py CONFIG --resume`` does after the kill."""
    return train(random_config(work_dir, resume=True, **options))


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


def test_calibration_with_nothing_to_resume_is_refused(tmp_path):
    cfg = make_config(tmp_path, PTQ, resume=True)
    with pytest.raises(QuantizeError, match='nothing to resume.*load_from='):
        train(cfg)


def test_training_with_nothing_to_resume_says_so(tmp_path):
    train(make_config(tmp_path, QAT, iters=2, resume=True))
    assert 'has nothing to resume: training starts from the initial' in log_of(tmp_path)


# Files


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    train(make_config(work_dir, QAT))
    return work_dir


@pytest.fixture
def work_dir(trained, tmp_path):
    """A copy of a training's folder that was killed after its third epoch."""
    copied = tmp_path / 'copied'
    shutil.copytree(trained, copied)
    for epoch in range(4, EPOCHS + 1):
        (copied / f'epoch_{epoch}.pth').unlink()
    (copied / 'last_checkpoint').write_text(str(copied / 'epoch_3.pth'))
    return copied


@pytest.mark.parametrize('content', ['', 'half of a pa', None, 'work_dirs/gone.pth'])
def test_last_checkpoint_that_was_cut_off_is_made_up_for(content, trained, work_dir):
    named = work_dir / 'last_checkpoint'
    if content is None:
        named.unlink()
    else:
        named.write_text(content)
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_3.pth')
    train(make_config(work_dir, QAT, resume=True))
    assert_same_end(work_dir, trained)


def test_last_checkpoint_is_believed_while_its_file_is_there(work_dir):
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_2.pth')


def test_folder_without_any_checkpoint(tmp_path):
    assert latest_checkpoint(str(tmp_path)) is None
    (tmp_path / 'last_checkpoint').write_text('gone.pth')
    with pytest.raises(QuantizeError, match='names gone.pth.*load_from'):
        latest_checkpoint(str(tmp_path))


def test_only_checkpoint_stays_until_the_next_is_complete(tmp_path):
    options = dict(quantize=QAT, default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    kill(tmp_path, 'saving:epoch_3.pth', **options)
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_2.pth']
    assert find_latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    resume(tmp_path, **options)
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_6.pth']


def test_best_checkpoint_stays_until_the_next_is_complete(tmp_path, monkeypatch):
    best = dict(save_best='norm', rule='less', max_keep_ckpts=2)
    options = dict(quantize=QAT, default_hooks=dict(checkpoint=best))
    options['optim_wrapper.optimizer.weight_decay'] = 1.0
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train(random_config(whole, **options))
    (name,) = (path.name for path in whole.glob('best_*.pth'))
    assert name != 'best_norm_epoch_1.pth'

    put = LocalBackend.put

    def put_nothing(backend, data, path):
        if name in str(path):
            raise Killed
        put(backend, data, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, 'put', put_nothing)
        with pytest.raises(Killed):
            train(random_config(parts, **options))
    (left,) = parts.glob('best_*.pth')
    assert left.name != name
    resume(parts, **options)
    assert_same_end(parts, whole)


# Random numbers


def test_epochs_differ_in_their_random_numbers(tmp_path):
    seen = []

    class Watch(torch.utils.data.Dataset):
        metainfo = {}

        def __len__(self):
            return 16

        def __getitem__(self, index):
            seen.append(float(torch.rand(1)))
            return dict(inputs=torch.rand(1, 8, 8), labels=torch.tensor(1), place=index)

    cfg = make_config(tmp_path, QAT, **{'train_cfg.max_epochs': 3})
    runner = Runner.from_cfg(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader)
    runner._train_dataloader = torch.utils.data.DataLoader(
        Watch(), batch_size=8, collate_fn=loader.collate_fn
    )
    runner.train()
    drawn = seen[-48:]
    assert len(set(drawn)) == 48

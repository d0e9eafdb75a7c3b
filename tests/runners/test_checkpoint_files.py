"""Checkpoints that are cut off, are lost, or are the best."""

import errno
import os
import shutil

import pytest
from fault_runs import random_config
from killed_runs import kill, resume
from mmengine.fileio import LocalBackend
from mmengine.runner import find_latest_checkpoint
from qat_runs import assert_same_end, score_of
from refusals import refused
from toy_runner import EPOCHS, QAT, Killed, log_of, make_config, train, val_scores

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.runners.checkpoint_files import latest_checkpoint


@pytest.fixture
def work_dir(qat_dir, tmp_path):
    """A copy of a training's folder that was killed after its third epoch."""
    copied = tmp_path / 'copied'
    shutil.copytree(qat_dir, copied)
    for epoch in range(4, EPOCHS + 1):
        (copied / f'epoch_{epoch}.pth').unlink()
    (copied / 'last_checkpoint').write_text(str(copied / 'epoch_3.pth'))
    return copied


@pytest.mark.parametrize('content', ['', 'half of a pa', None, 'work_dirs/gone.pth'])
def test_last_checkpoint_that_was_cut_off_is_made_up_for(content, qat_dir, work_dir):
    named = work_dir / 'last_checkpoint'
    if content is None:
        named.unlink()
    else:
        named.write_text(content)
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_3.pth')
    train(make_config(work_dir, QAT, resume=True))
    assert_same_end(work_dir, qat_dir)


def test_last_checkpoint_is_believed_while_its_file_is_there(work_dir):
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_2.pth')


DAMAGES = {
    'cut off': (lambda content: content[: len(content) // 2], 'is cut off or damaged'),
    'empty': (lambda content: b'', 'is empty'),
}


@pytest.mark.parametrize('kind', ['cut off', 'empty'])
def test_last_checkpoint_that_is_not_whole_is_skipped(kind, qat_dir, work_dir):
    damage, reason = DAMAGES[kind]
    last = work_dir / 'epoch_3.pth'
    last.write_bytes(damage(last.read_bytes()))
    assert latest_checkpoint(str(work_dir)) == str(work_dir / 'epoch_2.pth')
    train(make_config(work_dir, QAT, resume=True))
    log = log_of(work_dir)
    assert log.count(f'{last} {reason}; it is skipped') == 1
    assert f'Resuming from {work_dir / "epoch_2.pth"}' in log
    assert_same_end(work_dir, qat_dir)


def test_folder_without_any_whole_checkpoint(work_dir):
    for path in work_dir.glob('*.pth'):
        path.write_bytes(path.read_bytes()[:1000])
    cfg = make_config(work_dir, QAT, resume=True)
    refused(lambda: train(cfg), 'is whole', 'epoch_3.pth is cut off', 'load_from')


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
    assert_same_end(tmp_path, qat_dir, f'epoch_{EPOCHS}.pth')
    assert not list(tmp_path.glob('*.part'))


def test_full_disk_leaves_the_previous_checkpoint_and_no_part(tmp_path, monkeypatch):
    put = LocalBackend.put

    def fill(backend, data, path):
        if 'epoch_3.pth' in str(path):
            put(backend, data[: len(data) // 2], path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(backend, data, path)

    monkeypatch.setattr(LocalBackend, 'put', fill)
    cfg = make_config(tmp_path, QAT)
    words = 'epoch_3.pth cannot be written', 'No space left', '--resume'
    refused(lambda: train(cfg), *words)
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    assert not list(tmp_path.glob('*.part'))


def test_what_killed_saves_have_left_is_removed(tmp_path):
    options = dict(quantize=QAT)
    kill(tmp_path, 'saving:epoch_3.pth', **options)
    left = [path.name for path in tmp_path.glob('*.part')]
    assert left == ['epoch_3.pth.part']
    (tmp_path / 'last_checkpoint.part').touch()
    (tmp_path / 'notes.part').touch()
    resume(tmp_path, **options)
    assert [path.name for path in tmp_path.glob('*.part')] == ['notes.part']


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

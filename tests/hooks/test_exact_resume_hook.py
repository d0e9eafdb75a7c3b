"""A training that is resumed ends as the uninterrupted one."""

import pytest
import torch
from mmengine.runner import Runner
from qat_runs import assert_same_end
from toy_runner import (
    BATCH_SIZE,
    EPOCHS,
    NUM_TRAIN,
    QAT,
    Killed,
    differences,
    load,
    log_of,
    make_config,
    train,
)

from mmquant_jacinto.hooks.exact_resume_hook import SeededBatches

ITERS = NUM_TRAIN // BATCH_SIZE  # in an epoch
EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)


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
    assert_same_end(tmp_path, qat_dir, f'epoch_{EPOCHS}.pth')


def test_run_killed_within_an_epoch_ends_as_the_uninterrupted_one(qat_dir, tmp_path):
    kill = dict(type='KillHook', before_iter=2 * ITERS + 2)
    with pytest.raises(Killed):
        train(make_config(tmp_path, QAT, custom_hooks=[kill]))
    train(make_config(tmp_path, QAT, resume=True))
    assert_same_end(tmp_path, qat_dir, f'epoch_{EPOCHS}.pth')


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
    assert_same_end(tmp_path, iter_dir, 'iter_24.pth')


def test_batches_are_the_same_after_skipping_some():
    def draws():
        while True:
            yield float(torch.rand(1))

    whole, resumed = (SeededBatches(draws(), seed=3) for _ in range(2))
    expected = [next(whole) for _ in range(6)]
    resumed.skip_iter(4)
    assert [next(resumed), next(resumed)] == expected[4:]


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
    assert_same_end(parts, whole, name)
    first, second = (load(d / name)['ema_state_dict'] for d in (parts, whole))
    assert not differences(first, second)


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

import pytest
from mmengine.runner import Runner
from ptq_runs import ptq_config
from refusals import refused
from toy_runner import EPOCHS, WatchHook, make_config, train


@pytest.fixture(scope='session')
def float_checkpoint(tmp_path_factory):
    """A trained float model."""
    work_dir = tmp_path_factory.mktemp('float')
    train(make_config(work_dir))
    return work_dir / f'epoch_{EPOCHS}.pth'


@pytest.fixture(scope='session')
def ptq_dir(float_checkpoint, tmp_path_factory):
    """The work dir of a calibration on all training images."""
    work_dir = tmp_path_factory.mktemp('ptq')
    train(ptq_config(work_dir, float_checkpoint))
    return work_dir


@pytest.fixture
def refused_training(tmp_path):
    """Refusal of ``train()``; nothing may have been trained or saved."""

    def refuse(quantize, *words, change=None, **changes):
        hook = dict(type='WatchHook')
        cfg = make_config(tmp_path, quantize, custom_hooks=[hook], **changes)
        if change is not None:
            change(cfg)
        runners = []

        def act():
            runners.append(Runner.from_cfg(cfg))
            runners[0].train()

        message = refused(act, *words)
        for runner in runners:
            hooks = [hook for hook in runner.hooks if isinstance(hook, WatchHook)]
            assert hooks
            assert not hooks[0].losses
        assert not list(tmp_path.glob('*.pth*'))
        return message

    return refuse

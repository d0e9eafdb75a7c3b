import pytest
import torch
from qat_runs import watch
from toy_models import ToyNet, randomize_norms
from toy_runner import QAT, make_config, train


def pytest_configure(config):
    # The toy nets are too small to share among threads.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def toy_net():
    return randomize_norms(ToyNet()).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)


@pytest.fixture(scope='session')
def qat_dir(tmp_path_factory):
    """The work dir of an uninterrupted training by epochs."""
    work_dir = tmp_path_factory.mktemp('qat')
    train(make_config(work_dir, QAT))
    return work_dir


@pytest.fixture
def watched(tmp_path):
    """Trains a changed config and returns the hook that watched it."""

    def run(quantize=QAT, **changes):
        hooks = changes.pop('custom_hooks', [])
        cfg = make_config(
            tmp_path / 'watched',
            quantize,
            custom_hooks=[*hooks, dict(type='WatchHook')],
            **changes,
        )
        return watch(cfg)[1]

    return run

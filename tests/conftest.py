import pytest
import torch
from toy_models import ToyNet, randomize_norms


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

import pytest
import torch


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8)

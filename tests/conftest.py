"""Where and how the tests run.

``MMQUANT_TEST_DEVICE=cuda`` runs the engine's tests on a GPU: tensors are made there,
and NumPy sees copies of them.
"""

import os

import pytest
import torch
from mmengine.model import BaseDataPreprocessor
from toy_models import ToyNet, randomize_norms

DEVICE = os.environ.get('MMQUANT_TEST_DEVICE', 'cpu')
_PROCESSES = 'it starts processes, which share work on CPUs'
_RUNTIME = 'ONNX Runtime and what it is compared with run on a CPU'
CPU_ONLY = {
    'test_native': 'its kernels are those of a CPU',
    'test_host_memory': 'it is about the memory of the host',
    **dict.fromkeys(
        ('test_cpu_distributed', 'test_distributed', 'test_faults'), _PROCESSES
    ),
    **dict.fromkeys(
        (
            'test_export',
            'test_export_layers',
            'test_export_postprocess',
            'test_export_regions',
            'test_export_tools',
        ),
        _RUNTIME,
    ),
}


def pytest_configure(config):
    # The toy nets are too small to share among threads.
    torch.set_num_threads(1)
    if DEVICE != 'cpu':
        # Runs that are compared are to be the same.
        torch.backends.cudnn.deterministic = True
        # The package is imported by now: its constants are where they always are.
        torch.set_default_device(DEVICE)


def pytest_collection_modifyitems(items):
    if DEVICE == 'cpu':
        return
    for item in items:
        reason = CPU_ONLY.get(item.path.stem)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    # Around fixtures of a module or of the session too.
    placed_there = DEVICE != 'cpu' and places_tensors(item.module)
    if placed_there:
        torch.set_default_device(None)
    yield
    if placed_there:
        torch.set_default_device(DEVICE)


@pytest.fixture(autouse=True)
def place(request, monkeypatch):
    """Makes a test's tensors on the device that was asked for."""
    if DEVICE == 'cpu' or places_tensors(request.module):
        return
    to_numpy, from_numpy = torch.Tensor.numpy, torch.from_numpy
    monkeypatch.setattr(torch.Tensor, 'numpy', lambda x: to_numpy(x.cpu()))
    monkeypatch.setattr(torch, 'from_numpy', lambda x: from_numpy(x).to(DEVICE))
    # It follows the model's `.to()`, which nobody calls.
    monkeypatch.setattr(BaseDataPreprocessor, 'device', torch.device(DEVICE))


def places_tensors(module):
    """Whether a test module says itself where its tensors are, or has a runner."""
    return getattr(module, 'PLACES_TENSORS', False) or any(
        getattr(item, '__module__', None) == 'toy_runner'
        or getattr(item, '__name__', None) == 'toy_runner'
        for item in vars(module).values()
    )


@pytest.fixture(autouse=True)
def seed(place):
    torch.manual_seed(0)


@pytest.fixture
def toy_net():
    return randomize_norms(ToyNet()).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16)

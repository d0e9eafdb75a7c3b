"""Where and how the tests run.

``MMQUANT_TEST_DEVICE=cuda`` runs the engine's tests on a GPU: tensors are made there,
and NumPy sees copies of them.
"""

import os

import pytest
import torch
from mmengine.model import BaseDataPreprocessor
from paths import HELPERS
from qat_runs import watch
from toy_models import ToyNet, randomize_norms
from toy_runner import QAT, make_config, train

DEVICE = os.environ.get('MMQUANT_TEST_DEVICE', 'cpu')
TESTS = HELPERS.parent
# Folders and files of tests that a GPU has nothing to do with. They are not collected.
CPU_ONLY = (
    # ONNX Runtime, what it is compared with, and the simulation of engines.
    'export/',
    'targets/',
    # Processes that share work on CPUs, and the memory of the host.
    'runners/test_cpu_distributed.py',
    'runners/test_distributed.py',
    'runners/test_killed_runs.py',
    'wrappers/test_glibc_memory.py',
    'quantizers/kernels/test_integer_kernels.py',
    'quantizers/kernels/test_native.py',
    # Documents, configs, plans, files and messages, and searches for a budget.
    'benchmarks/',
    'config/',
    'docs/',
    'packaging/',
    'plan/',
    'report/page/',
    'runners/test_budget_runs.py',
    'runners/test_checkpoint_files.py',
    'runners/test_refusals.py',
    'runners/test_refused_checkpoints.py',
    'tools/',
    'test_layers.py',
)
# What has a runner, which places the model by itself.
RUNS = {'toy_runner', 'qat_runs', 'ptq_runs', 'killed_runs', 'old_checkpoints'}


def pytest_configure(config):
    # The toy nets are too small to share among threads.
    torch.set_num_threads(1)
    if DEVICE != 'cpu':
        # Runs that are compared are to be the same, and float models near a CPU's.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        # The package is imported by now: its constants are where they always are.
        torch.set_default_device(DEVICE)


def pytest_ignore_collect(collection_path):
    if DEVICE == 'cpu' or TESTS not in collection_path.parents:
        return None
    path = collection_path.relative_to(TESTS).as_posix()
    return f'{path}/'.startswith(CPU_ONLY) or None


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
    for name in ('rand', 'randn'):
        monkeypatch.setattr(torch, name, drawn_on_cpu(getattr(torch, name)))
    for name in ('uniform_', 'normal_'):
        monkeypatch.setattr(torch.Tensor, name, filled_on_cpu(name))


def drawn_on_cpu(draw):
    """Random numbers that a test has on a CPU, on the device."""

    def drawn(*args, requires_grad=False, **kwargs):
        if {'device', 'generator', 'out'} & set(kwargs):
            return draw(*args, requires_grad=requires_grad, **kwargs)
        found = draw(*args, device='cpu', **kwargs).to(DEVICE)
        return found.requires_grad_(requires_grad)

    return drawn


def filled_on_cpu(name):
    """The same of weights that are filled in place."""
    fill = getattr(torch.Tensor, name)

    def filled(x, *args, **kwargs):
        if not x.is_cuda or kwargs.get('generator') is not None:
            return fill(x, *args, **kwargs)
        kwargs.pop('generator', None)
        there = torch.empty(x.shape, dtype=x.dtype, device='cpu')
        return x.copy_(fill(there, *args, **kwargs))

    return filled


def places_tensors(module):
    """Whether a test module says itself where its tensors are, or has a runner."""
    return getattr(module, 'PLACES_TENSORS', False) or any(
        getattr(item, '__module__', None) in RUNS
        or getattr(item, '__name__', None) in RUNS
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

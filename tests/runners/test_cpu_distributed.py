import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from free_port import free_port
from mmengine.config import Config
from mmengine.device import get_device
from paths import TOOLS
from torch import distributed as torch_dist

from mmquant_jacinto.runners.cpu_distributed import (
    init_cpu_process_group,
    use_cpu_model_wrapper,
)

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='needs no GPU')

TOY_MODULE = """
    import torch
    from mmengine.dist import get_rank
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
    from mmengine.evaluator import BaseMetric
    from torch import distributed as torch_dist

    @DATASETS.register_module()
    class ToyDataset(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return dict(inputs=torch.full((3,), float(index)))

    @MODELS.register_module()
    class ToyModel(BaseModel):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 1)

        def forward(self, inputs, mode='tensor'):
            out = self.linear(torch.stack(inputs))
            return dict(loss=out.sum()) if mode == 'loss' else list(out)

    @METRICS.register_module()
    class CountMetric(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.extend(data_samples)

        def compute_metrics(self, results):
            return dict(count=len(results))

    @HOOKS.register_module()
    class RecordHook(Hook):
        def after_train(self, runner):
            state = dict(
                backend=torch_dist.get_backend(),
                iterations=runner.iter,
                wrapper=type(runner.model).__name__,
                weight=runner.model.module.linear.weight.detach(),
            )
            torch.save(state, f'{runner.work_dir}/rank{get_rank()}.pth')
"""

TOY_CONFIG = """
    custom_imports = dict(imports=['toy'])
    model = dict(type='ToyModel')
    train_dataloader = dict(
        batch_size=2,
        dataset=dict(type='ToyDataset'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    test_dataloader = train_dataloader
    train_cfg = dict(by_epoch=False, max_iters=2)
    test_cfg = dict()
    test_evaluator = dict(type='CountMetric')
    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
    default_hooks = dict(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)
    )
    custom_hooks = [dict(type='RecordHook')]
"""


@pytest.fixture
def toy_dir(tmp_path):
    (tmp_path / 'toy.py').write_text(textwrap.dedent(TOY_MODULE))
    (tmp_path / 'config.py').write_text(textwrap.dedent(TOY_CONFIG))
    return tmp_path


@pytest.fixture
def group_of_one(monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '1')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', free_port())
    init_cpu_process_group('pytorch')
    yield
    torch_dist.destroy_process_group()


def run_tool(script: str, *args: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(TOOLS / script), *map(str, args), '--work-dir', str(cwd)],
        cwd=cwd,
        env={
            **os.environ,
            'PYTHON': sys.executable,
            'PYTHONPATH': str(cwd),
            'PORT': free_port(),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_float_model_trains_and_tests_in_two_processes(toy_dir):
    run_tool('dist_train.sh', 'config.py', 2, cwd=toy_dir)
    first, second = (torch.load(toy_dir / f'rank{rank}.pth') for rank in (0, 1))
    for state in (first, second):
        assert state['backend'] == 'gloo'
        assert state['iterations'] == 2
        assert state['wrapper'] == 'MMDistributedDataParallel'
    # The processes saw different data: equal weights mean averaged gradients.
    assert torch.equal(first['weight'], second['weight'])

    log = run_tool('dist_test.sh', 'config.py', 'iter_2.pth', 2, cwd=toy_dir)
    assert 'count: 8' in log


def test_one_process_needs_no_group():
    init_cpu_process_group('none')
    assert not torch_dist.is_initialized()


def test_unknown_launcher_is_named():
    with pytest.raises(ValueError, match="'torchrun'.*none, pytorch, slurm, mpi"):
        init_cpu_process_group('torchrun')


def test_launchers_tell_rank_and_size(monkeypatch, group_of_one):
    torch_dist.destroy_process_group()
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name)
        monkeypatch.setenv(f'OMPI_COMM_WORLD_{name}', '0')
    monkeypatch.delenv('OMPI_COMM_WORLD_WORLD_SIZE')
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '1')
    init_cpu_process_group('mpi')
    assert torch_dist.get_world_size() == 1


def test_second_call_keeps_the_group(group_of_one):
    group = torch_dist.group.WORLD
    init_cpu_process_group('pytorch')
    assert torch_dist.group.WORLD is group


def test_model_wrapper_of_the_user_stays(group_of_one):
    cfg = Config(
        dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', find_unused_parameters=True
            )
        )
    )
    use_cpu_model_wrapper(cfg)
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', find_unused_parameters=True, device_ids=None
    )


def test_one_process_keeps_its_config():
    cfg = Config(dict(model=dict(type='ToyModel')))
    use_cpu_model_wrapper(cfg)
    assert cfg.to_dict() == dict(model=dict(type='ToyModel'))

"""Several processes, also without an accelerator, where MMEngine cannot start them."""

import atexit
import os
import subprocess
from typing import Any, Optional

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed as torch_dist
from torch.nn.parallel import DistributedDataParallel

from ..errors import QuantizeError

_WRAPPERS = ('MMDistributedDataParallel', 'DistributedDataParallel')
# What each launcher calls the three numbers that torch.distributed reads.
_LAUNCHER_ENV = {
    'pytorch': dict(RANK='RANK', WORLD_SIZE='WORLD_SIZE', LOCAL_RANK='LOCAL_RANK'),
    'slurm': dict(
        RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'
    ),
    'mpi': dict(
        RANK='OMPI_COMM_WORLD_RANK',
        WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
        LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}


def init_cpu_process_group(launcher: str, backend: str = 'gloo') -> None:
    """Create the process group that ``Runner.setup_env`` would fail to create.

    MMEngine's ``init_dist`` selects a CUDA device first, which a machine without one
    refuses, but ``Runner.setup_env`` leaves a group alone that exists already. Does
    nothing with launcher ``'none'``, with an accelerator, or a second time.

    Args:
        launcher (str): ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        backend (str): Backend of ``torch.distributed`` that works on the CPU.
            Defaults to ``'gloo'``.

    Examples:
        >>> cfg = Config.fromfile('configs/ssd/ssd300_voc0712.py')
        >>> init_cpu_process_group(cfg.launcher)
        >>> runner = Runner.from_cfg(cfg)
    """
    if launcher == 'none' or get_device() != 'cpu' or is_distributed():
        return
    if launcher not in _LAUNCHER_ENV:
        raise ValueError(
            f"unknown launcher '{launcher}', it is one of none, "
            f'{", ".join(_LAUNCHER_ENV)}'
        )
    for name, source in _LAUNCHER_ENV[launcher].items():
        os.environ[name] = os.environ[source]
    if launcher == 'slurm':
        os.environ.setdefault('MASTER_ADDR', _first_slurm_host())
    os.environ.setdefault('MASTER_PORT', '29500')
    torch_dist.init_process_group(backend=backend)
    # Its threads may be ended by the interpreter while they wait, which ends the
    # process with an error after all is done.
    atexit.register(leave_process_group)


def leave_process_group() -> None:
    """Leaves the group of processes, if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def _first_slurm_host() -> str:
    command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
    return subprocess.check_output(command, text=True).splitlines()[0]


def use_cpu_model_wrapper(cfg: Config) -> None:
    """Let ``Runner.wrap_model`` wrap a float model that lives on the CPU.

    It gives every ``DistributedDataParallel`` the id of a GPU unless
    ``model_wrapper_cfg`` has ``device_ids``, and for a model on the CPU these must be
    None. Changes nothing outside of a distributed run on the CPU.

    Args:
        cfg (Config): Config of a runner, changed in place.
    """
    if get_device() != 'cpu' or not is_distributed():
        return
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper.setdefault('type', MMDistributedDataParallel.__name__)
    wrapper_type = wrapper['type']
    if isinstance(wrapper_type, str):
        wrapper_type = MODEL_WRAPPERS.get(wrapper_type)
    if wrapper_type is not None and issubclass(wrapper_type, DistributedDataParallel):
        wrapper.setdefault('device_ids', None)
        cfg.model_wrapper_cfg = wrapper


def distributed_arguments(
    given: Optional[dict], distributed: bool, find_unused: bool
) -> dict[str, Any]:
    """What the data-parallel wrapper of a quantized model is made with.

    Args:
        given (dict, optional): ``model_wrapper_cfg``.
        distributed (bool): Whether there are several processes.
        find_unused (bool): ``find_unused_parameters`` of the config.

    Raises:
        QuantizeError: If it is another wrapper.
    """
    arguments = dict(given or {})
    kind = arguments.pop('type', _WRAPPERS[0])
    if kind not in _WRAPPERS:
        raise QuantizeError(
            f'model_wrapper_cfg.type={kind!r} cannot be quantized; use '
            + ' or '.join(repr(name) for name in _WRAPPERS)
        )
    on_gpu = get_device() != 'cpu'
    arguments.setdefault(
        'device_ids',
        [int(os.environ['LOCAL_RANK'])] if on_gpu and distributed else None,
    )
    arguments.setdefault('broadcast_buffers', False)
    arguments.setdefault('find_unused_parameters', find_unused)
    return arguments

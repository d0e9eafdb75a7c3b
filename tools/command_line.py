"""What the command lines of train.py and test.py have in common."""

import argparse
import os
import sys
from pathlib import Path
from typing import Callable

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.runners.cpu_distributed import (
    init_cpu_process_group,
    use_cpu_model_wrapper,
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument(
        '--work-dir',
        help='where logs, checkpoints and results go; by default '
        "the config's work_dir, or else ./work_dirs/NAME_OF_THE_CONFIG",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, such as optim_wrapper.optimizer.lr=0.01 '
        'or key="[a,b]" or key="[(a,b),(c,d)]"; quoted, and without white space',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started this process together with others',
    )
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the options that training and testing share."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for, also for processes on CPUs."""
    init_cpu_process_group(cfg.launcher)
    # The quantized runner wraps its model itself.
    if not cfg.get('quantize'):
        use_cpu_model_wrapper(cfg)
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def exit_on_quantize_error(main: Callable[[], None]) -> None:
    """Run ``main``; a mistake in the config ends it with one line, not a traceback."""
    try:
        main()
    except QuantizeError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)

"""What the command lines of train.py and test.py have in common."""

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner

from mmquant_jacinto import QuantizeConfig, QuantizeError
from mmquant_jacinto.runners.checkpoint_files import what_is_wrong
from mmquant_jacinto.runners.cpu_distributed import (
    init_cpu_process_group,
    use_cpu_model_wrapper,
)
from mmquant_jacinto.wrappers.mmdet_modules import wrapper_class
from mmquant_jacinto.wrappers.quant_module import QuantModule

MAX_SIDE = 2**15  # of an image, in pixels


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


def wrapped_model(cfg: Config, kind: str, config: QuantizeConfig) -> QuantModule:
    """Build a config's model in the wrapper that quantizes it, without a runner.

    Args:
        cfg: As read.
        kind: Of :func:`~mmquant_jacinto.wrappers.mmdet_modules.wrapper_class`.
        config: How it is quantized.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model)
    return wrapper_class(model, kind)(model, config=config)


def read_config(path: str) -> Config:
    """Read a config file.

    Raises:
        QuantizeError: If it is not there, or no config of a model.
    """
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise QuantizeError(
            f'{path} is no Python: {error.msg} in line {error.lineno} of it, or of a '
            'config in its _base_'
        ) from error
    except OSError as error:
        missing = error.filename or path
        reason = f'{missing} is not there' if error.strerror else str(error)
        raise QuantizeError(
            f'{path} cannot be read as a config: {reason}; give a .py, .yaml or .json '
            'file'
        ) from error
    if 'model' not in cfg:
        raise QuantizeError(f'{path} has no model; give a config with model=dict(...)')
    return cfg


def merge_options(cfg: Config, options: Optional[dict[str, Any]]) -> None:
    """Apply --cfg-options.

    Raises:
        QuantizeError: If one goes into what is no dict or list of that size.
    """
    try:
        cfg.merge_from_dict(options or {})
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        given = ' '.join(f'{key}={value}' for key, value in (options or {}).items())
        reason = str(error).partition('. ')[0]
        raise QuantizeError(
            f'--cfg-options {given} does not fit the config: {reason}'
        ) from error


def check_file(path: str) -> None:
    """Raise QuantizeError where a checkpoint or model file is not whole."""
    reason = None if '://' in path else what_is_wrong(path)
    if reason is not None:
        raise QuantizeError(f'{path} {reason}; give a whole .pth or .onnx file')


def report_folder(given: Optional[Path], checkpoint: str) -> Path:
    """Where a report goes: --out, or beside the checkpoint.

    Leaves nothing behind.

    Raises:
        QuantizeError: If it cannot be written.
    """
    folder = given or Path(checkpoint).resolve().parent / 'report'
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise QuantizeError(
            f'--out {folder} cannot be written ({error.strerror}); choose another '
            'folder'
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
    return folder


def check_shape(shape: tuple[int, int]) -> None:
    """Raise QuantizeError where --shape is not the size of an image."""
    if not all(0 < size <= MAX_SIDE for size in shape):
        raise QuantizeError(
            f'--shape {shape[0]} {shape[1]} is not the size of an image; use a height '
            f'and a width from 1 to {MAX_SIDE}, such as --shape 320 320'
        )


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the options that training and testing share."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    merge_options(cfg, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
    except OSError as error:
        raise QuantizeError(
            f'--work-dir {cfg.work_dir} cannot be made ({error.strerror}); choose '
            'another folder'
        ) from error
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

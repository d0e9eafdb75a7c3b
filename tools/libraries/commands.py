"""Trains, calibrates, tests and exports one config of a library by the commands."""

import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zoo.commands import _run
from zoo.export import without_folders

from mmquant_jacinto.export.configs.end_to_end import digest

from .cases import CASES, write_case

CALIBRATED = 'ptq/epoch_1.pth'
VERIFIED = 2  # images


def examine_runner(name: str) -> dict[str, Any]:
    """Takes a library's case both ways through the runner.

    Args:
        name (str): The config's, of :func:`~libraries.configs.all_names`.

    Returns:
        Dict[str, Any]: ``'config'`` and ``'runner'``: of how many ``'images'``
        checkpoint and file predict the ``'equal'``, or the ``'reason'`` why that is
        not known.
    """
    start = time.perf_counter()
    folder, path = os.getcwd(), sys.path.copy()
    try:
        with tempfile.TemporaryDirectory() as work_dir:
            os.chdir(work_dir)
            sys.path.insert(0, work_dir)
            found = run_case(name.partition('/')[0])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is in the report
        found = dict(reason=without_folders(error))
    finally:
        os.chdir(folder)
        sys.path[:] = path
    found['seconds'] = round(time.perf_counter() - start, 1)
    return dict(config=name, runner=found)


def run_case(library: str) -> dict[str, Any]:
    """Types the commands in the folder that the process is in.

    Args:
        library (str): Import name, of :data:`~libraries.cases.CASES`.
    """
    write_case(library, Path('.'))
    ptq = ('--cfg-options', 'quantize.mode=ptq')
    _run('train.py', 'config.py', '--work-dir', 'qat')
    _run('train.py', 'config.py', '--work-dir', 'ptq', *ptq)
    export = ('-o', 'model.onnx', '--verify', VERIFIED)
    _run('export.py', 'config.py', CALIBRATED, *export, *ptq)
    predictions = []
    for tested in (CALIBRATED, 'model.onnx'):
        out = ('--work-dir', 'test', '--out', 'out.pkl')
        _run('test.py', 'config.py', tested, *out, *ptq)
        predictions.append(pickle.loads(Path('out.pkl').read_bytes()))
    pairs = [tuple(map(digest, pair)) for pair in zip(*predictions)]
    return dict(images=len(pairs), equal=sum(a == b for a, b in pairs))


def config_of(library: str) -> str:
    """Name of the config that a library's case is made of."""
    return CASES[library].base.replace('::', '/')

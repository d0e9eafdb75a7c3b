"""Runs command lines one after the other in one process.

Importing MMDetection takes longer than what the tests run with it.

Usage: run_tools.py '[["tools/train.py", "config.py"], ["tools/test.py", ...]]'
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

TIMEOUT = 900


def python_path(folder):
    """PYTHONPATH of a process that finds a folder, and what is found here."""
    known = os.environ.get('PYTHONPATH')
    return os.pathsep.join([str(folder), *([known] if known else [])])


def run_lines(root, *lines):
    """Runs lines of (tool, arguments, options) in a folder, in a process of their own.

    Args:
        root (Path): The folder.
        *lines: The script, its arguments, and a dict for ``--cfg-options``.

    Returns:
        str: What they print.
    """
    argv = []
    for tool, arguments, options in lines:
        argv.append([str(tool), *map(str, arguments)])
        if options:
            argv[-1].append('--cfg-options')
            argv[-1] += [f'{key}={value}' for key, value in options.items()]
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(argv)],
        cwd=root,
        env={**os.environ, 'OMP_NUM_THREADS': '2'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


if __name__ == '__main__':
    path = sys.path.copy()
    for line in json.loads(sys.argv[1]):
        sys.argv = line
        sys.path = [str(Path(line[0]).parent), *path]
        runpy.run_path(line[0], run_name='__main__')

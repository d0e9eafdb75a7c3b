"""Kills runs, and goes on with them."""

import json
import os
import signal
import subprocess
import sys

import pytest
from fault_runs import random_config
from paths import HELPERS
from toy_runner import Killed, train

SCRIPT = HELPERS / 'fault_runs.py'
TIMEOUT = 300


def kill(work_dir, where, **options):
    """Runs :func:`random_config` as a process until it kills itself."""
    done = subprocess.run(
        [sys.executable, SCRIPT, work_dir, where, json.dumps(options)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout[-5000:]


def end(work_dir, iteration, **options):
    """Runs it here until an exception ends it, which is faster."""
    cfg = random_config(work_dir, **options)
    cfg.custom_hooks = [
        *cfg.custom_hooks,
        dict(type='KillHook', before_iter=iteration),
    ]
    with pytest.raises(Killed):
        train(cfg)


def resume(work_dir, **options):
    """What ``tools/train.py CONFIG --resume`` does after the kill."""
    return train(random_config(work_dir, resume=True, **options))

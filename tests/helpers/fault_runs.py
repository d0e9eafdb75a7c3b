"""A run that is killed as by ``kill -9``; tests start it as a process.

Usage: fault_runs.py WORK_DIR WHERE CONFIG_AS_JSON
"""

import json
import os
import signal
import sys

import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from toy_runner import make_config, set_pipeline

from mmquant_jacinto import QuantCalibrateModule


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class KillNowHook(Hook):
    """Kills the process in the middle of an iteration, counted from 1."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            step = runner.model.train_step
            runner.model.train_step = lambda *args, **kwargs: (
                step(*args, **kwargs),
                kill_self(),
            )


def kill_when_saving(name):
    """Kills the process when half of a checkpoint is written."""
    put = LocalBackend.put

    def put_half(backend, data, path):
        if name in str(path):
            put(backend, data[: len(data) // 2], path)
            kill_self()
        put(backend, data, path)

    LocalBackend.put = put_half


def kill_when_calibrating(number):
    """Kills the process in a step of calibration, counted from 1."""
    step = QuantCalibrateModule.calibrate_step
    steps = []

    def killed_step(*args):
        steps.append(None)
        result = step(*args)
        if len(steps) == number:
            kill_self()
        return result

    QuantCalibrateModule.calibrate_step = killed_step


def random_config(work_dir, quantize, workers=0, augment=True, **options):
    """A config whose training is random in all ways that there are."""
    options = {'model.dropout': 0.2, **options}
    cfg = make_config(work_dir, quantize, **options)
    cfg.train_dataloader.num_workers = workers
    cfg.train_dataloader.persistent_workers = workers > 0
    if augment:
        set_pipeline(cfg, 'train_dataloader', dict(type='Jitter'))
    return cfg


if __name__ == '__main__':
    torch.set_num_threads(1)
    _, work_dir, where, options = sys.argv
    cfg = random_config(work_dir, **json.loads(options))
    kind, _, place = where.partition(':')
    if kind == 'iteration':
        hook = dict(type='KillNowHook', iteration=int(place))
        cfg.custom_hooks = [*cfg.custom_hooks, hook]
    elif kind == 'saving':
        kill_when_saving(place)
    else:
        kill_when_calibrating(int(place))
    Runner.from_cfg(cfg).train()

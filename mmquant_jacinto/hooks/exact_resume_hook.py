"""What makes a resumed training end where the uninterrupted one ends."""

import functools
import random
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import ReduceOnPlateauParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

GRADIENTS, PREPROCESSOR = 'accumulated_gradients', 'preprocessor_attributes'
VALIDATED = 'validated'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a training a function of its seed and its last checkpoint.

    MMEngine stores no random state. So each epoch, or each iteration of an
    iteration-based loop, starts from random numbers that follow from the seed and
    its number, in this process and in the workers of the dataloader. Gradients that
    are accumulated over a checkpoint, and the size that a multi-scale training is
    at, go into the checkpoint. A validation that a kill has cut off, after its
    checkpoint, is made up for: it may decide which checkpoint is the best.
    ``QuantRunner`` registers this hook by itself.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._owes_validation = False
        self._validated_at = -1

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the epoch, or makes the iterations seed themselves."""
        self._make_up_for_validation(runner)
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = SeededBatches(
                loop.dataloader_iterator, runner.seed
            )
            return
        seed = derived_seed(runner.seed, runner.epoch)
        seed_all(seed)
        init = loop.dataloader.worker_init_fn
        if isinstance(init, functools.partial) and 'seed' in init.keywords:
            loop.dataloader.worker_init_fn = functools.partial(init, seed=seed)

    def after_train(self, runner: Runner) -> None:
        """Validates what was saved at the very end."""
        self._make_up_for_validation(runner)

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        """Takes note for the checkpoint of the best score."""
        self._validated_at = runner.iter

    def _make_up_for_validation(self, runner: Runner) -> None:
        owes, self._owes_validation = self._owes_validation, False
        if owes and runner.val_loop is not None and _validates_now(runner):
            runner.val_loop.run()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Stores what MMEngine does not."""
        checkpoint[VALIDATED] = self._validated_at == checkpoint['meta']['iter']
        model = runner.model.module
        gradients = {
            name: parameter.grad.detach().cpu()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        # Each of several processes has its own.
        if gradients and get_world_size() == 1:
            checkpoint[GRADIENTS] = gradients
        attributes = _plain_attributes(getattr(model, 'data_preprocessor', None))
        if attributes:
            checkpoint[PREPROCESSOR] = attributes

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Takes it up again, in a run that is resumed."""
        if not runner.is_resuming:
            return
        self._owes_validation = not checkpoint.get(VALIDATED, True)
        model = runner.model.module
        parameters = dict(model.named_parameters())
        for name, gradient in checkpoint.get(GRADIENTS, {}).items():
            parameters[name].grad = gradient.to(parameters[name])
        for path, values in checkpoint.get(PREPROCESSOR, {}).items():
            vars(model.data_preprocessor.get_submodule(path)).update(values)


class SeededBatches:
    """Batches of an iteration-based loop, each with random numbers of its own.

    Args:
        batches (Iterator): What the loop takes its batches from.
        seed (int): Of the run.
    """

    def __init__(self, batches: Iterator, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.index = 0

    def __iter__(self) -> 'SeededBatches':
        return self

    def __next__(self) -> Any:
        # Also those that a resumed run only skips.
        seed_all(derived_seed(self.seed, self.index))
        self.index += 1
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        """Skips batches, as the loops of MMEngine's forks ask for it.

        By loading them: workers draw on, and datasets that keep images (cached
        mosaics) keep those they would have kept.

        Args:
            num_iters (int): How many.
        """
        for _ in range(num_iters):
            next(self)


def _validates_now(runner: Runner) -> bool:
    """Whether the loop validates where it is, to a score that has consequences."""
    loop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        position, last = loop.iter, loop.max_iters
    else:
        position, last = loop.epoch, loop.max_epochs
    if position == last:
        return True
    loop._decide_current_val_interval()
    if position < loop.val_begin or position % loop.val_interval:
        return False
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [item for items in schedulers.values() for item in items]
    return any(
        isinstance(hook, CheckpointHook) and hook.save_best for hook in runner.hooks
    ) or any(isinstance(item, ReduceOnPlateauParamScheduler) for item in schedulers)


def derived_seed(seed: int, position: int) -> int:
    """A seed for a part of a run, below 2**31 to leave room for workers' numbers."""
    state = np.random.SeedSequence([seed, position]).generate_state(1)
    return int(state[0] >> 1)


def seed_all(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators, of accelerators too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _plain_attributes(preprocessor: Any) -> dict[str, dict[str, Any]]:
    """Numbers, and tuples of them, by module below the data preprocessor."""
    if not isinstance(preprocessor, nn.Module):
        return {}
    found = {
        name: {
            key: value for key, value in vars(module).items() if _is_plain(key, value)
        }
        for name, module in preprocessor.named_modules()
        if name
    }
    return {name: values for name, values in found.items() if values}


def _is_plain(key: str, value: Any) -> bool:
    if key == 'training':
        return False
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, (int, float)) for part in parts)

"""What makes a resumed training end where the uninterrupted one ends."""

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

GRADIENTS, PREPROCESSOR = 'accumulated_gradients', 'preprocessor_attributes'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a training a function of its seed and its last checkpoint.

    MMEngine stores no random state. So each epoch, or each iteration of an
    iteration-based loop, starts from random numbers that follow from the seed and
    its number, in this process and in the workers of the dataloader. Gradients that
    are accumulated over a checkpoint, and the size that a multi-scale training is
    at, go into the checkpoint. ``QuantRunner`` registers this hook by itself.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the epoch, or makes the iterations seed themselves."""
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

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Stores what MMEngine does not."""
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

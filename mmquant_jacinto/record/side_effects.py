"""Looking at a model without leaving a trace in it, or in the random state."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leaves Python's, NumPy's and torch's random state as they were.

    Of accelerators that of the present one: others are other processes'.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Leaves a model as it was, whatever its forward passes change in it.

    Training flags, and all that modules keep as attributes or count in buffers (a
    loss that follows its own average, a generator that caches its anchors), are
    put back; so is the random state. Parameters are not: run it without gradients.

    Args:
        model (nn.Module): May run in the context.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    members = [
        (module._parameters.copy(), module._buffers.copy(), module._modules.copy())
        for module in modules
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with preserved_random_state():
        try:
            yield
        finally:
            for module, own, tables in zip(modules, attributes, members):
                vars(module).clear()
                vars(module).update(own)
                for name, table in zip(('_parameters', '_buffers', '_modules'), tables):
                    own[name].clear()
                    own[name].update(table)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

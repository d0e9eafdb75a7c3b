"""Activation checkpointing: what is computed a second time is quantized again.

``torch.utils.checkpoint`` (``with_cp`` in a backbone, MMEngine's
``activation_checkpointing``) keeps no activations of a function and runs it again
during the backward pass (Chen et al., arXiv 1604.06174). By then the region is
closed, its calls are counted, and the ranges have moved on. So a function that is
checkpointed while an executor is at work takes along where it was called and on
which grids, and its second run happens there and on those.
"""

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Callable, Protocol

import torch
from torch.utils import checkpoint as torch_checkpoint


class Replayer(Protocol):
    """What can run a part of a pass again: ``execute.Executor``."""

    def remember(self) -> Any:
        """Where the pass is, and on which grids."""

    def replay(self, memory: Any) -> AbstractContextManager:
        """A context in which it is there again."""

    def settle(self, values: Any) -> Any:
        """What tensors, in any nesting, have become by in-place calls."""


class _Running(threading.local):
    """The executors whose passes are going on in a thread, the innermost one last."""

    def __init__(self) -> None:
        self.stack: list[Replayer] = []


_running = _Running()


def start(replayer: Replayer) -> None:
    """Notes that a pass, or a region, of ``replayer`` starts."""
    _running.stack.append(replayer)


def stop(replayer: Replayer) -> None:
    """Notes that it ends; the ones inside that an interrupt left over end too."""
    stack = _running.stack
    while stack and stack.pop() is not replayer:
        pass


def forget(replayer: Replayer) -> None:
    """Notes that nothing of ``replayer`` goes on, whatever an interrupt left over."""
    stack = _running.stack
    stack[:] = [item for item in stack if item is not replayer]


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread."""
    return torch._C._current_graph_task_id() != -1


class _Replayable:
    """A function that is checkpointed, with what its second run needs."""

    def __init__(self, function: Callable, replayer: Replayer) -> None:
        self.function = function
        self.replayer = replayer
        self.memory = replayer.remember()
        self.has_run = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.has_run:
            self.has_run = True
            return self.replayer.settle(self.function(*args, **kwargs))
        with self.replayer.replay(self.memory):
            return self.replayer.settle(self.function(*args, **kwargs))


def follow_checkpoints() -> None:
    """Makes ``torch.utils.checkpoint.checkpoint`` take quantization along.

    Also where it was imported by name before. Without effect on functions that are
    checkpointed while no quantized model runs; a second call changes nothing.
    """
    original = torch_checkpoint.checkpoint
    if getattr(original, 'follows_quantization', False):
        return

    @functools.wraps(original)
    def checkpoint(function: Callable, *args: Any, **kwargs: Any) -> Any:
        stack = _running.stack
        if stack and not isinstance(function, _Replayable):
            replayer = stack[-1]
            function = _Replayable(function, replayer)
            args, kwargs = replayer.settle((args, kwargs))
        return original(function, *args, **kwargs)

    checkpoint.follows_quantization = True  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, '__dict__', {}).items()):
            if value is original:
                setattr(module, name, checkpoint)


@contextmanager
def spare_statistics() -> Iterator[Callable[[torch.nn.Module], None]]:
    """Keeps normalizations that run a second time from counting the batch twice.

    Yields:
        Callable: Gives a module copies of its buffers; in the end it gets the
        original ones back.
    """
    spared: list[tuple[torch.nn.Module, dict]] = []

    def spare(module: torch.nn.Module) -> None:
        spared.append((module, dict(module._buffers)))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()

    try:
        yield spare
    finally:
        for module, buffers in reversed(spared):
            module._buffers.update(buffers)

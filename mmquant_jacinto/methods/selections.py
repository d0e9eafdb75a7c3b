"""Selections: which of its proposals a network goes on with.

A DETR of two stages decodes the proposals that score best. Quantized it scores them a
little differently, and what it gives for its k-th has nothing to do with what the float
model gives for its own. Where both are compared, the quantized model goes on with the
proposals that the float model has chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .network_outputs import Outputs

_SELECT = frozenset({torch.topk, Tensor.topk})


class _Selecting(TorchFunctionMode):
    """Context in which subclasses answer calls of ``topk``."""

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        call = self.select if func in _SELECT else func
        return call(*args, **(kwargs or {}))

    def select(self, *args: Any, **kwargs: Any) -> Any:
        """What a call of ``topk`` with these arguments gives."""
        raise NotImplementedError


class NotedSelections(_Selecting):
    """Context of a pass in float that notes what ``topk`` selects.

    Args:
        outputs (Outputs, optional): Which keep what leaves the network meanwhile.
    """

    def __init__(self, outputs: Outputs | None = None) -> None:
        super().__init__()
        self._outputs = outputs
        self._found: list[tuple[int, Tensor]] = []

    def select(self, *args: Any, **kwargs: Any) -> Any:
        result = torch.topk(*args, **kwargs)
        kept = 0 if self._outputs is None else len(self._outputs.kept)
        self._found.append((kept, result[1]))
        return result

    @property
    def all(self) -> list[Tensor]:
        """List[Tensor]: Indices of each call, in their order."""
        return [indices for _, indices in self._found]

    def before(self, count: int) -> list[Tensor]:
        """Indices that were selected while fewer outputs than these had been given.

        What is selected of the outputs themselves, by losses or to decode them, comes
        later, and is no part of the network.
        """
        return [indices for kept, indices in self._found if kept < count]


class _Imposed(_Selecting):
    """Context in which ``topk`` gives what was selected in another pass."""

    def __init__(self, selections: Sequence[Tensor]) -> None:
        super().__init__()
        self._left = iter(selections)

    def select(
        self, input: Tensor, k: int, dim: int = -1, *args: Any, **kwargs: Any
    ) -> Any:
        indices, shape = next(self._left, None), list(input.shape)
        shape[dim] = k
        if indices is None or 'out' in kwargs or list(indices.shape) != shape:
            return torch.topk(input, k, dim, *args, **kwargs)
        return torch.return_types.topk((input.gather(dim, indices), indices))


def imposed(selections: Sequence[Tensor]) -> AbstractContextManager:
    """Context of a quantized pass that selects what the one in float has.

    Args:
        selections (Sequence[Tensor]): Indices of each call of ``topk``, in their order;
            beyond them, and where the shape is another, the pass selects by itself.
    """
    return _Imposed(selections) if selections else nullcontext()

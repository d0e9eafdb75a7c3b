"""Example: an input, and the pass of the model over it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map


@dataclass
class Example:
    """What a model is run on.

    Args:
        images (Tensor): What its first module gets: (N, C, H, W), normalized.
        run (Callable): Runs the model on it and returns what it returns.
    """

    images: Tensor
    run: Callable[[], Any]

    @classmethod
    def of(cls, model: nn.Module, given: Any) -> Example:
        """Makes one of a tensor, or of a batch as a dataloader yields it.

        Args:
            model (nn.Module): The model, no wrapper.
            given (Any): An image tensor; for a model of MMEngine a batch.
        """
        if isinstance(given, Tensor):
            return cls(given, lambda: model(given))
        assert isinstance(model, BaseModel)
        data = model.data_preprocessor(copy.deepcopy(given), False)
        return cls(data['inputs'], lambda: model._run_forward(data, mode='predict'))


class RegionOutputs:
    """Collects what regions return while a model runs.

    Args:
        root (nn.Module): The model.
        layout (List[dict]): Of the file; its region calls are collected, in order.
    """

    def __init__(self, root: nn.Module, layout: list[dict]) -> None:
        self.root, self.layout = root, layout
        self.regions = {root.get_submodule(item['region']) for item in layout}
        self.outputs: list[Any] = []

    @contextmanager
    def collecting(self) -> Iterator[list[Any]]:
        """Context that yields the list of outputs, filled as the model runs."""
        self.outputs = []
        handles = [
            module.register_forward_hook(
                lambda module, args, output: self.outputs.append(
                    # Decoding may write into it.
                    tree_map(lambda x: x.clone() if _is_tensor(x) else x, output)
                )
            )
            for module in self.regions
        ]
        try:
            with torch.no_grad():
                yield self.outputs
        finally:
            for handle in handles:
                handle.remove()


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def named_tensors(layout: list[dict], outputs: list[Any]) -> dict[str, Tensor]:
    """Tensors by their names in the file, of collected outputs."""
    found = {}
    for item, output in zip(layout, outputs):
        leaves = tree_flatten(output)[0]
        for name, leaf in zip(_names(item['output']), leaves):
            if name is not None:
                found[name] = leaf
    return found


def _names(layout: Any) -> Iterator[str | None]:
    ((kind, content),) = layout.items()
    if kind in ('tuple', 'list'):
        for item in content:
            yield from _names(item)
    elif kind == 'dict':
        for item in content.values():
            yield from _names(item)
    else:
        yield content if kind == 'tensor' else None

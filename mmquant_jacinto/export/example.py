"""Example: an input, and the pass of the model over it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..errors import QuantizeError
from ..wrappers.call_arguments import arguments_of, named_arguments, named_leaves

INPUT_NAME = 'images'  # of an only input


@dataclass
class Example:
    """What a model is run on.

    Args:
        inputs (Dict[str, Tensor]): What its first modules get, by name, as the file
            takes it. An only tensor is called ``images``: (N, C, H, W), normalized.
        run (Callable): Runs the model on it and returns what it returns.
    """

    inputs: dict[str, Tensor]
    run: Callable[[], Any]

    @property
    def images(self) -> Tensor:
        """Tensor: The first of the inputs."""
        return next(iter(self.inputs.values()))

    @classmethod
    def of(cls, model: nn.Module, given: Any) -> Example:
        """Makes one of tensors, or of a batch as a dataloader yields it.

        Args:
            model (nn.Module): The model, no wrapper.
            given (Any): An image tensor; for a model of MMEngine a batch; for others
                also a tuple of positional or a dict of keyword arguments. The file's
                inputs then have the names of ``forward``'s parameters.

        Raises:
            QuantizeError: If there is no tensor in it, or tensors of another size for
                each sample, as points are.
        """
        if isinstance(given, Tensor):
            return cls({INPUT_NAME: given}, lambda: model(given))
        if isinstance(model, BaseModel):
            data = model.data_preprocessor(copy.deepcopy(given), False)
            within = isinstance(data, Mapping) and 'inputs' in data
            found = data['inputs'] if within else data
            inputs = dict(named_leaves(found))
            if isinstance(found, Tensor):
                inputs = {INPUT_NAME: found}
            _check_sizes(model, inputs)
            example = cls(inputs, lambda: model._run_forward(data, mode='predict'))
        else:
            device = next(itertools.chain(model.parameters(), model.buffers())).device
            # Each its own, also where one is given twice: names are on the tensors.
            args, kwargs = tree_map(
                lambda x: x.to(device, copy=True) if _is_tensor(x) else x,
                arguments_of(model, given),
            )
            inputs = named_arguments(model.forward, args, kwargs)
            example = cls(inputs, lambda: model(*args, **kwargs))
        if not inputs:
            raise QuantizeError(
                f'the example is a {type(given).__name__} without a tensor; give an '
                'image tensor (N, C, H, W), a tuple or dict of what the model takes, '
                'or a batch as the dataloader yields it'
            )
        return example


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


def _check_sizes(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    if len({len(x) for x in inputs.values() if x.dim()}) > 1:
        shapes = ', '.join(f'{name} {tuple(x.shape)}' for name, x in inputs.items())
        raise QuantizeError(
            f'{type(model).__name__} reads points, of which each sample has another '
            f'number ({shapes}), and a file has inputs of fixed sizes: its part from '
            'the first dense tensor on can be exported, as a model of its own'
        )


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

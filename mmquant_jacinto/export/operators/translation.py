"""Translation: how the calls of a torch function are registered and written.

To teach the exporter a function, register its nodes here::

    @translates('relu')
    def _relu(site, x, inplace=False):
        return site.node('Relu', x)

The arguments are those of the call; ``site.out`` is its result, for shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from ..graph.graph_writer import GraphWriter, onnx_dtype

TO_THE_END = np.iinfo(np.int64).max  # whatever the size is
TRANSLATIONS: dict[str, Callable] = {}


def translates(*names: str) -> Callable:
    """Registers how calls of the named torch functions are written.

    Args:
        *names (str): Canonical names, see :mod:`~mmquant_jacinto.record.ops`; for a
            function that is not in its table, the name without underscores.
    """

    def register(function: Callable) -> Callable:
        TRANSLATIONS.update(dict.fromkeys(names, function))
        return function

    return register


class Operand(str):
    """Name of an operand that also tells its shape."""

    shape: torch.Size

    def __new__(cls, name: str, shape: torch.Size) -> Operand:
        self = super().__new__(cls, name)
        self.shape = shape
        return self

    def dim(self) -> int:
        return len(self.shape)


class SiteWriter:
    """Writes the nodes of one call.

    Args:
        writer (GraphWriter): The graph.
        name (str): Of the call site.
        out (Any): What the call returned.
        name_of (Callable): Tensor and call site to the name the tensor has in the
            graph, None for a constant.
    """

    def __init__(
        self, writer: GraphWriter, name: str, out: Any, name_of: Callable
    ) -> None:
        self.writer = writer
        self.name = name
        self.out = out
        self.name_of = name_of

    def value(self, x: Any, like: Tensor | None = None) -> str:
        """Name of an operand; numbers become constants of ``like``'s dtype."""
        if isinstance(x, str):
            return x
        if isinstance(x, Tensor):
            name = self.name_of(x, self.name)
            return name or self.writer.constant(x, f'{self.name}:constant')
        dtype = self.out.dtype if like is None else like.dtype
        return self.writer.constant(torch.tensor(x, dtype=dtype))

    def ints(self, values: Any) -> str:
        """A constant of int64."""
        return self.writer.constant(np.asarray(values, np.int64), 'shape')

    def node(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; operands may be tensors, numbers or names.

        Returns:
            str | List[str]: Name of the result, a list where there are more.
        """
        names = ['' if x is None else self.value(x) for x in inputs]
        return self.writer.node(op, names, self.name, outputs, **attributes)

    def cast(self, x: Any, dtype: torch.dtype) -> str:
        return self.node('Cast', x, to=onnx_dtype(dtype))

    def reshape(self, x: Any, shape: Sequence[int]) -> str:
        # Else a size of 0 would be that of the operand.
        options = {'allowzero': 1} if 0 in shape else {}
        return self.node('Reshape', x, self.ints(list(shape)), **options)


def axis_of(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def cut(site, x, axes, starts, ends, steps):
    return site.node('Slice', x, *map(site.ints, (starts, ends, axes, steps)))

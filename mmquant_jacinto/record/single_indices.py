"""Single indices: ``x[0]`` and ``x[:1]`` are seen by modes in PyTorch 2.1 too.

There a torch function mode sees an index that is a tuple, and no other: what a model
takes out of a tensor by one number, slice or tensor would follow from nothing.
"""

from typing import Any, Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Seen(TorchFunctionMode):
    """Counts the calls that a mode sees."""

    count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def are_seen() -> bool:
    """Whether modes see an index that is no tuple."""
    x = torch.zeros(1)
    with _Seen() as mode:
        x[0]
    return mode.count > 0


def make_seen(table: dict[Callable, Any]) -> None:
    """Makes modes see them: ``x[0]`` becomes ``x[0,]``, which means the same.

    Args:
        table (Dict[Callable, Any]): What is known of functions; modes are shown
            another one in place of ``Tensor.__getitem__`` then, which is the same.
    """
    if are_seen():
        return
    getitem = Tensor.__getitem__

    def __getitem__(self: Tensor, index: Any) -> Any:
        return getitem(self, index if isinstance(index, tuple) else (index,))

    table[__getitem__] = table[getitem]
    Tensor.__getitem__ = __getitem__  # type: ignore[method-assign, assignment]

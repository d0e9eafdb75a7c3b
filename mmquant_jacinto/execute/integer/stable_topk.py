"""Ordering: of equal scores, the first comes first, as in ONNX.

Scores of 8 bits tie, and which of them ``torch.topk`` takes is not said: queries of a
DETR of two stages, which its decoder reads, come in one order here and in another in an
engine.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    handle_torch_function,
    has_torch_function,
)


def topk(
    input: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
    *,
    out: Any = None,
) -> Any:
    """``torch.topk`` with equal elements in the order of their indices."""
    if out is not None:
        return torch.topk(input, k, dim, largest, sorted, out=out)
    if has_torch_function((input,)):
        return handle_torch_function(topk, (input,), input, k, dim, largest, sorted)
    values, indices = torch.sort(input, dim=dim, descending=largest, stable=True)
    return torch.return_types.topk(
        (values.narrow(dim, 0, k), indices.narrow(dim, 0, k))
    )


class StableOrder(TorchFunctionMode):
    """Context in which ``torch.topk`` is :func:`topk`."""

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable,
        args: tuple = (),
        kwargs: Optional[dict] = None,
    ) -> Any:
        func = INSTEAD.get(func, func)
        return func(*args, **(kwargs or {}))


INSTEAD: Mapping[Callable, Callable] = {torch.topk: topk, Tensor.topk: topk}

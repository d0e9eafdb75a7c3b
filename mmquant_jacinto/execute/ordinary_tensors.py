"""Ordinary tensors: those of a region, also in inference mode.

An inference tensor has no version and does not know what it is a view of, so nobody
could tell that a write through a view has changed it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Context without gradients in which tensors are ordinary ones."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def same_mode() -> Iterator[None]:
    """Context behind which inference mode and gradients are as before it."""
    with (
        torch.inference_mode(torch.is_inference_mode_enabled()),
        torch.set_grad_enabled(torch.is_grad_enabled()),
    ):
        yield


def made_ordinary(values: Any) -> Any:
    """Values in any nesting, with copies in place of inference tensors."""
    return tree_map(_ordinary, values)


def _ordinary(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x

"""Memory: what calls write into, and how to see that somebody has."""

from typing import Callable

import torch
from torch import Tensor


def writes_in_place(func: Callable, kwargs: dict) -> bool:
    """Whether a call overwrites a tensor that it gets."""
    if kwargs and (kwargs.get('inplace') or kwargs.get('out') is not None):
        return True
    name = func.__name__
    is_method = name.endswith('_') and not name.endswith('__')
    return is_method or name in _ASSIGNMENTS


# `x += y` and the like.
_ASSIGNMENTS = frozenset(
    '__iadd__ __isub__ __imul__ __idiv__ __itruediv__ __ifloordiv__ __imod__ __ipow__ '
    '__imatmul__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__'.split()
)


def version_of(x: Tensor) -> int:
    """How often a tensor, or a view of its memory, has been written to."""
    return 0 if x.is_inference() else x._version


def unseen_version(x: Tensor) -> int:
    """The same, by calls that no torch function mode sees."""
    with torch._C.DisableTorchFunction():
        return version_of(x)

"""Calls: what a torch function, its arguments and its place in the code say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Callable

from torch import Tensor
from torch.utils._pytree import tree_flatten

import mmquant_jacinto

from ...record.memory import writes_in_place

_PACKAGE = str(Path(mmquant_jacinto.__file__).parent)
# What these return follows from shapes and numbers alone.
CONSTANTS = frozenset(
    'new_tensor new_zeros new_ones new_full new_empty zeros_like ones_like full_like '
    'empty_like size shape_as_tensor zeros ones full arange linspace'.split()
)
# They make a number of the program of a tensor.
READS = frozenset('item tolist __float__ __int__ __index__'.split())

_OF_MAPS = re.compile(r'(?:conv|conv_transpose|(?:adaptive_)?(?:avg|max)_pool)(\d)d')


def lacks_batch(name: str, x: Tensor) -> bool:
    """Whether a layer or a pooling is called on one image, as ONNX's are not."""
    found = _OF_MAPS.fullmatch(name)
    return found is not None and x.dim() == int(found[1]) + 1


def all_tensors(args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors in the arguments of a call, bounds of slices among them."""
    leaves = tree_flatten((args, kwargs))[0]
    slices = [leaf for leaf in leaves if isinstance(leaf, slice)]
    bounds = [x for item in slices for x in (item.start, item.stop, item.step)]
    return [x for x in (*leaves, *bounds) if isinstance(x, Tensor)]


def written_by(func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
    """The tensor that a call overwrites, if it does."""
    if func.__name__ != '__setitem__' and not writes_in_place(func, kwargs):
        return None
    written = kwargs.get('out')
    if written is None:
        written = args[0] if args else kwargs.get('input', kwargs.get('self'))
    return written if isinstance(written, Tensor) else None


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def origin(site: str) -> str:
    """Where in the model's code the running call is."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_PACKAGE) and '/torch/' not in path:
            if not path.endswith('contextlib.py'):
                break
        frame = frame.f_back
    where = '' if frame is None else f', {frame.f_code.co_filename}:{frame.f_lineno}'
    return f'(in {site.rpartition("/")[0] or "the model"}{where})'

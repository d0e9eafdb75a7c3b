"""In place: calls that overwrite a tensor, computed out of place."""

from typing import Any, Callable

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..record.memory import writes_in_place
from ..record.ops import OPS

_NOW = '_mmquant_now'  # on a tensor: what an in-place call made of it


def is_in_place(func: Callable, kwargs: dict) -> bool:
    return func in _IN_PLACE or (bool(kwargs) and writes_in_place(func, kwargs))


_IN_PLACE = frozenset(func for func in OPS if writes_in_place(func, {}))


def operand_of(args: tuple, kwargs: dict) -> Any:
    """What a call in place overwrites, unless it has an ``out``."""
    return args[0] if args else kwargs.get('input', kwargs.get('self'))


def with_operand(x: Tensor, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The same call in place of another tensor."""
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, 'input' if 'input' in kwargs else 'self': x}


class _Noted:
    """Whether anything was ever replaced: as a rule nothing is."""

    replaces = False


def replace(x: Tensor, result: Tensor) -> None:
    # An in-place call may be computed out of place, and its caller may go on
    # with the tensor that it believes to be changed.
    setattr(x, _NOW, result)
    _Noted.replaces = True


def current_call(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments of a call, with what in-place calls made of them."""
    if not _Noted.replaces:
        return args, kwargs
    return tuple([current(item) for item in args]), current_keywords(kwargs)


_PLAIN = frozenset({int, float, bool, str, type(None)})


def current(item: Any) -> Any:
    if type(item) in _PLAIN:
        return item
    while isinstance(item, Tensor):
        now = getattr(item, _NOW, None)
        if now is None:
            return item
        item = now
    if type(item) in (list, tuple):
        return type(item)([current(part) for part in item])
    return item


def current_keywords(kwargs: dict) -> dict:
    """Keyword arguments, less what is written to."""
    return {
        key: item if key == 'out' else current(item) for key, item in kwargs.items()
    }


def current_leaves(output: Any) -> Any:
    leaves, structure = tree_flatten(output)
    return tree_unflatten([current(leaf) for leaf in leaves], structure)

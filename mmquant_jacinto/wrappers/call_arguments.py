"""How a model is called with what a user gives, and what its tensors are called."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def arguments_of(model: nn.Module, given: Any) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of a call.

    Args:
        model (nn.Module): What is called.
        given (Any): A tensor; a tuple or list of positional arguments, or one that
            the model takes as such; a dict of keyword arguments, or one that it takes
            as such.
    """
    if isinstance(given, Mapping):
        named = all(isinstance(key, str) for key in given)
        if named and _binds(model, (), given):
            return (), dict(given)
        if _binds(model, (given,), {}) or not named:
            return (given,), {}
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        if not _binds(model, tuple(given), {}) and _binds(model, (given,), {}):
            return (given,), {}
        return tuple(given), {}
    return (given,), {}


def _binds(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has the arguments that the model's ``forward`` asks for."""
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:
        return True  # nobody knows
    return True


def named_arguments(
    forward: Callable, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Tensors of a call by the names of its parameters.

    Args:
        forward (Callable): What is called.
        args (tuple): Positional arguments.
        kwargs (Mapping): Keyword arguments.

    Returns:
        Dict[str, Tensor]: In the order of the signature. What is within an argument
        has its place behind its name, as in ``images.0``.
    """
    try:
        signature = inspect.signature(forward)
        found: dict[str, Any] = dict(signature.bind(*args, **kwargs).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                found.update(found.pop(name, {}))
    except (TypeError, ValueError):
        found = {**{f'input.{i}': x for i, x in enumerate(args)}, **kwargs}
    return dict(named_leaves(found))


def named_leaves(given: Any, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dicts, tuples and lists, by their paths."""
    if isinstance(given, Tensor):
        yield prefix, given
        return
    items: Any = ()
    if isinstance(given, Mapping):
        items = given.items()
    elif isinstance(given, (tuple, list)):
        items = enumerate(given)
    for key, item in items:
        yield from named_leaves(item, f'{prefix}.{key}' if prefix else str(key))

"""Recurrence: whether two steps of a loop read what their former steps gave, alike."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Callable

from . import ops
from .call_tree import CallNode
from .graph import Site

# The result is a part of the operand, or the operand in another layout: the same work.
VIEWS = frozenset(
    'reshape view view_as reshape_as flatten unflatten permute transpose swapaxes '
    'movedim t contiguous clone squeeze unsqueeze expand expand_as narrow chunk split '
    'getitem select unbind index_select flip roll float to type_as detach alias '
    'dropout'.split()
)
CALLS_IN_A_STEP = 2
# Looked at for a step of a recurrence; what takes more is no loop around one module.
MOST_CALLS = 1000


class Recurrence:
    """What values have become since a module's last run.

    Args:
        maker (Callable): Gives the call that has made a value; None for one that
            has entered.
        works (Callable): Gives the work of a value, see :mod:`same_work`.
        begin (CallNode): One of the module's runs.
    """

    def __init__(
        self,
        maker: Callable[[int | None], Site | None],
        works: Callable[[int], tuple[int, int]],
        begin: CallNode,
    ) -> None:
        self._maker, self._works = maker, works
        name = re.sub(r'#\d+$', '', begin.name)
        self._runs = tuple(name + sign for sign in './>#')
        self._reached: set[str] = set()
        self._left = 0

    def has_alike(self, first: int | None, second: int | None) -> bool:
        """Whether two values follow from former runs, and by the same functions."""
        self._reached = self._follow(first) | self._follow(second)
        for value in (first, second):
            maker = self._maker(value)
            if maker is None or maker.name not in self._reached:
                return False
        keys = []
        for value in (first, second):
            self._left = MOST_CALLS
            keys.append(self._key(value, ()))
            if self._left < 0:
                return False
        return keys[0] == keys[1]

    def _follow(self, value: int | None) -> set[str]:
        """Names of the calls between a value and former runs, and in those."""
        last = self._maker(value)
        pending, known = [last], set()
        readers: dict[str, set[str]] = defaultdict(set)
        while pending:
            site = pending.pop()
            if site is None or site.name in known:
                continue
            known.add(site.name)
            for item in site.inputs:
                maker = self._maker(item)
                if maker is not None:
                    readers[maker.name].add(site.name)
                    pending.append(maker)
        reached: set[str] = set()
        names = [name for name in known if name.startswith(self._runs)]
        while names:
            name = names.pop()
            if name not in reached:
                reached.add(name)
                names += readers[name]
        return reached

    def _key(self, value: int | None, path: tuple) -> Any:
        self._left -= 1
        site = self._maker(value)
        if self._left < 0:
            return None
        if value is None or site is None or site.name not in self._reached:
            return None if value is None else self._works(value)[1]
        if site.name.startswith(self._runs):
            return 'former run'
        if site.op in VIEWS:
            return self._key(site.inputs[0], path)
        if site.kind == ops.CAT:
            # However often something was added to it.
            if site.name in path:
                return frozenset()
            keys = [self._key(item, (*path, site.name)) for item in site.inputs]
            lists = [key if isinstance(key, frozenset) else {key} for key in keys]
            return frozenset().union(*lists)
        call = site.op, site.module
        # One step may call a function several times; a sum that each step adds to
        # goes through all of them.
        if path.count(call) == CALLS_IN_A_STEP:
            return 'former step'
        return call, tuple(self._key(item, (*path, call)) for item in site.inputs)

"""Stand-ins for packages that are imported and not used."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class _Nothing(type):
    """Of classes that have any attribute, and give themselves when called."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return _Nothing(name, (), {'__module__': cls.__module__})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls


class _Absent(types.ModuleType):
    """Stands in for a package that can be imported from, but not used."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return _Nothing(name, (), {'__module__': self.__name__})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: Iterable[str]) -> None:
        self.packages = tuple(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not any(name == p or name.startswith(f'{p}.') for p in self.packages):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def stand_ins(packages: Iterable[str]) -> Iterator[None]:
    """Lets packages be imported that are not installed, while the context is open.

    What was imported from them has names and does nothing; afterwards they are as
    absent as before.

    Args:
        packages (Iterable[str]): Their names, or those of modules that a package
            lacks; what is installed is left alone.
    """
    finder = _Finder(name for name in packages if not _is_there(name))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if isinstance(sys.modules[n], _Absent)]:
            del sys.modules[name]


def _is_there(name: str) -> bool:
    # Of a module in a package: asked for only where the package has not got it, as
    # this finder is the last one. To look it up would import the package.
    return '.' not in name and importlib.util.find_spec(name) is not None

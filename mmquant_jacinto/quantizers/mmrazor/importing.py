"""MMRazor 1.0.0 on a current torch: lets it be imported, and says when it cannot be.

MMRazor's tables for quantization by torch.fx use names that torch has dropped since,
and ``import mmrazor.models`` fails on them. Nothing else of MMRazor needs the tables.
So where they fail, and only there, an empty table takes their place; distillers,
losses, fake quantizers and observers then register as they always did.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Optional

from ...errors import QuantizeError

SCOPE = 'mmrazor'
INSTALL = "pip install 'mmquant_jacinto[mmrazor]'"
TABLES = 'mmrazor.structures.quantization.backend_config'


class _NoTables(dict):
    """Stands in for MMRazor's ``BackendConfigs``."""

    def __missing__(self, backend: str) -> None:
        raise QuantizeError(
            f"MMRazor's quantizer for {backend!r} needs torch.fx tables that this "
            "torch does not have; quantize with mmquant_jacinto's `quantize` instead"
        )


class _TablesLoader(Loader):
    """Loads the tables, or an empty one where they fail.

    Args:
        loader (Loader): Of the real module.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self.loader.exec_module(module)
        except ImportError:
            vars(module).update(__all__=['BackendConfigs'], BackendConfigs=_NoTables())


class _TablesFinder(MetaPathFinder):
    """Finds MMRazor's tables for :class:`_TablesLoader`, and nothing else."""

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]],
        target: Optional[ModuleType] = None,
    ) -> Optional[ModuleSpec]:
        if fullname != TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _TablesLoader(spec.loader)
        return spec


def let_mmrazor_import() -> None:
    """Makes ``import mmrazor.models`` work, whenever somebody calls it.

    Imports nothing itself; a second call changes nothing.
    """
    if not any(isinstance(finder, _TablesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TablesFinder())


def require_mmrazor(key: str) -> None:
    """Imports MMRazor, whose modules then are in its registries.

    Args:
        key (str): The config key that names it, and its value.

    Raises:
        QuantizeError: If it is not installed, or cannot be imported.
    """
    let_mmrazor_import()
    try:
        importlib.import_module('mmrazor.models')
    except (ImportError, AssertionError) as error:
        missing = isinstance(error, ImportError) and error.name == SCOPE
        reason = 'is not installed' if missing else f'cannot be imported ({error})'
        raise QuantizeError(
            f'{key} needs MMRazor, which {reason}; install it: {INSTALL}'
        ) from error


def mmrazor_types(cfg: Any, key: str) -> Iterator[str]:
    """The places in a config that name something of MMRazor.

    Args:
        cfg (Any): A dict, or what is in one.
        key (str): Where it is in the whole config.

    Yields:
        str: As in ``model.type='mmrazor.SingleTeacherDistill'``.
    """
    if isinstance(cfg, (list, tuple)):
        for index, item in enumerate(cfg):
            yield from mmrazor_types(item, f'{key}[{index}]')
    elif isinstance(cfg, dict):
        for name, item in cfg.items():
            scoped = name == '_scope_' and item == SCOPE
            typed = name == 'type' and str(item).startswith(f'{SCOPE}.')
            if scoped or typed:
                yield f'{key}.{name}={item!r}'
            yield from mmrazor_types(item, f'{key}.{name}')

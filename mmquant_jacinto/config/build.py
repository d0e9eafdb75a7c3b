"""Build: dicts of a config as the classes that check them."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from ..errors import QuantizeError, nearest
from ..registry import ROUNDINGS, registered
from .sections import Rounding

SWITCHES = ('learned_scale', 'finetune')  # sections that True switches on as they are


def build(
    cls: type, key: str, value: Mapping[str, Any], sections: Mapping[str, Any]
) -> Any:
    """A dict of a config as the class that checks it.

    Args:
        cls (type): A dataclass.
        key (str): Of the dict, for errors.
        value (Mapping[str, Any]): The dict.
        sections (Mapping[str, type]): Classes of the dicts in it, by key.

    Raises:
        QuantizeError: If a key is unknown, or missing, or a section is no dict; it
            names the nearest.
    """
    known = [item.name for item in fields(cls)]
    arguments: dict[str, Any] = {}
    for name, item in value.items():
        if name not in known:
            raise QuantizeError(
                f'{key}.{name} is not a known key; ' + nearest(name, known)
            )
        is_switch = item is None or isinstance(item, bool)
        if name in SWITCHES and is_switch:
            # One that is off says so where not saying it may switch it on.
            off = False if name == 'finetune' and item is False else None
            item = sections[name]() if item else off
        elif name == 'rounding' and isinstance(item, str):
            item = Rounding(item)
        elif name == 'mixed_precision' and (
            isinstance(item, str) or item is None or item is False
        ):
            item = item or None
        elif name in ('weight', 'activation') and item is None:
            pass
        elif name == 'max_drop' and not isinstance(item, Mapping):
            pass  # a number, a path: it reads them itself
        elif name in sections and not is_dataclass(item):
            if not isinstance(item, Mapping):
                keys = ', '.join(other.name for other in fields(sections[name]))
                raise QuantizeError(
                    f'{key}.{name}={item!r} is not a dict; use one with keys of {keys}'
                )
            if name == 'rounding' and 'method' not in item:
                raise QuantizeError(
                    f'{key}.rounding={dict(item)!r} has no method; add one of '
                    + ', '.join(map(repr, registered(ROUNDINGS)[1:]))
                )
            item = build(sections[name], f'{key}.{name}', item, {})
        if name == 'overrides' and not isinstance(item, Mapping):
            raise QuantizeError(
                f'{key}.overrides={item!r} is not a dict; use patterns of '
                "module names, such as {'bbox_head.*': 16}"
            )
        arguments[name] = item
    for item in fields(cls):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in arguments:
            raise QuantizeError(f'{key} has no {item.name}; give {key}.{item.name}')
    return cls(**arguments)

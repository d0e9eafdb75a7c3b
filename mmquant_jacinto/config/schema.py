"""The ``quantize`` key as a JSON schema, made of the classes that check it.

    python -m mmquant_jacinto.config.schema > docs/quantize.schema.json

For editors and programs that write configs. What several keys say together (a training
that asks for AdaRound) is checked by the classes alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..registry import (
    BIAS_CORRECTIONS,
    OBSERVERS,
    QUANT_TARGETS,
    ROUNDINGS,
    WEIGHT_OBSERVERS,
    registered,
)
from ..targets.formats import DEPTHWISE, MAX_BITS, MIN_BITS
from .build import SWITCHES
from .max_drop import Raised
from .quantize_config import (
    BIAS_CONSTRAINTS,
    MODES,
    SHORT_FORMS,
    QuantizeConfig,
)
from .sections import Calibration, Rounding
from .widths import TENSOR_KINDS

_STRING = {'type': 'string'}
_WIDTH = {'type': 'integer', 'minimum': MIN_BITS, 'maximum': MAX_BITS}
_WIDTHS = {
    'type': 'object',
    'properties': dict.fromkeys(TENSOR_KINDS, _WIDTH),
    'additionalProperties': False,
    'minProperties': 1,
}
_JSON_TYPES = {bool: 'boolean', int: 'integer', float: 'number', str: 'string'}
# A registry's names, to which others may add.
_REGISTRIES = {
    (QuantizeConfig, 'target'): QUANT_TARGETS,
    (QuantizeConfig, 'observer'): OBSERVERS,
    (QuantizeConfig, 'weight_observer'): WEIGHT_OBSERVERS,
    (Calibration, 'bias_correction'): BIAS_CORRECTIONS,
    (Rounding, 'method'): ROUNDINGS,
}
_CHOICES = {
    (QuantizeConfig, 'mode'): MODES,
    (QuantizeConfig, 'per_channel'): (DEPTHWISE,),
    (QuantizeConfig, 'constrain_bias'): BIAS_CONSTRAINTS,
}


def quantize_schema() -> dict[str, Any]:
    """What ``quantize`` may be, in the terms of JSON Schema (draft 2020-12).

    Returns:
        Dict: Plain data; names in it are those that are registered now.
    """
    full = _class_schema(QuantizeConfig)
    short = {'enum': sorted(SHORT_FORMS)}
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': 'quantize',
        'description': full.pop('description'),
        'anyOf': [full, {'type': 'boolean'}, {'type': 'null'}, short],
    }


def _class_schema(cls: Any) -> dict[str, Any]:
    """An object with the fields of a dataclass."""
    hints, told = get_type_hints(cls), _arguments(cls.__doc__)
    properties = {}
    for item in fields(cls):
        value = _value_schema(cls, item.name, hints[item.name])
        if item.default is not MISSING and item.default is not None:
            default = item.default
            value['default'] = list(default) if isinstance(default, tuple) else default
        properties[item.name] = {**value, 'description': told[item.name]}
    required = [
        item.name
        for item in fields(cls)
        if item.default is MISSING and item.default_factory is MISSING
    ]
    return {
        'type': 'object',
        'description': _plain(cls.__doc__.partition('\n\n')[0]),
        'properties': properties,
        **({'required': required} if required else {}),
        'additionalProperties': False,
    }


def _value_schema(cls: Any, name: str, hint: Any) -> dict[str, Any]:
    options = _options(hint)
    if (cls, name) == (QuantizeConfig, 'bits'):
        options = [_WIDTH, _WIDTHS, {'type': 'null'}]
    if (cls, name) == (QuantizeConfig, 'overrides'):
        widths = {'anyOf': [_WIDTH, _WIDTHS, {'enum': [False]}]}
        options = [{'type': 'object', 'additionalProperties': widths}]
    registry = _REGISTRIES.get((cls, name))
    if registry is not None:
        options.insert(0, {'enum': list(registered(registry))})
    if (cls, name) in _CHOICES:
        options = [item for item in options if item != {'type': 'string'}]
        options.insert(0, {'enum': list(_CHOICES[cls, name])})
    if cls is QuantizeConfig and name in SWITCHES:
        options.append({'type': 'boolean'})
    if hint is Rounding:
        options.append({'anyOf': [{'enum': list(registered(ROUNDINGS))}, _STRING]})
    return options[0] if len(options) == 1 else {'anyOf': options}


def _options(hint: Any) -> list[dict[str, Any]]:
    """The forms that a type allows."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Union:
        return [option for item in arguments for option in _options(item)]
    if origin is Literal:
        return [{'enum': list(arguments)}]
    if hint is type(None):
        return [{'type': 'null'}]
    if hint is Raised:
        return []  # what a path is read to
    if hint in _JSON_TYPES:
        return [{'type': _JSON_TYPES[hint]}]
    if is_dataclass(hint):
        return [_class_schema(hint)]
    if origin is Mapping:
        return [{'type': 'object'}]
    if origin is Sequence:
        return [{'type': 'array', 'items': _options(arguments[0])[0]}]
    raise TypeError(f'{hint} has no form in JSON')


def _arguments(docstring: str) -> dict[str, str]:
    """What a docstring says of each argument, in one line."""
    section = re.split(r'\n    Args:\n', docstring)[1]
    entries = re.findall(
        r'^        (\w+) \([^)]*\): (.*?)(?=^        \w|\Z)', section, re.M | re.S
    )
    return {name: _plain(text) for name, text in entries}


def _plain(text: str) -> str:
    """A docstring's text without roles and line breaks."""
    text = re.sub(r':\w+:`~?([^`]*)`', r'`\1`', text)
    return ' '.join(text.replace('``', '`').split())


if __name__ == '__main__':
    print(json.dumps(quantize_schema(), indent=1))

"""Registries: what a key of ``quantize`` names by a string.

A package of somebody else adds its own by ``custom_imports``; no line here changes:

    >>> from mmquant_jacinto.registry import OBSERVERS
    >>> @OBSERVERS.register_module(name='my_observer')
    ... class MyObserver(Observer): ...
"""

from typing import Any

from mmengine.registry import Registry

from .errors import QuantizeError, nearest

_SCOPE = 'mmquant_jacinto'

# `quantize.target`: subclasses of `targets.target.Target`.
QUANT_TARGETS = Registry('quantization target', scope=_SCOPE)
# `quantize.observer`: subclasses of `quantizers.observers.Observer`.
OBSERVERS = Registry('observer', scope=_SCOPE)
# `quantize.weight_observer`: subclasses of `quantizers.weight_search.WeightObserver`.
WEIGHT_OBSERVERS = Registry('weight observer', scope=_SCOPE)
# `quantize.calibration.bias_correction`: subclasses of
# `execute.corrections.bias_correction.BiasCorrection`.
BIAS_CORRECTIONS = Registry('bias correction', scope=_SCOPE)
# `quantize.rounding`: functions such as `methods.rounding.adaround`.
ROUNDINGS = Registry('rounding', scope=_SCOPE)


def registered(registry: Registry) -> tuple[str, ...]:
    """What may be named, in the order of registration."""
    return tuple(registry.module_dict)


def look_up(registry: Registry, key: str, name: object) -> Any:
    """The entry that a config names.

    Args:
        registry (Registry): Where to look.
        key (str): Where the name was given, such as ``quantize.target``.
        name (object): As it was given.

    Returns:
        Any: The class or function.

    Raises:
        QuantizeError: If there is no such entry; it names the nearest.
    """
    if not isinstance(name, str) or name not in registry.module_dict:
        raise QuantizeError(
            f'{key}={name!r} is unknown; ' + nearest(name, registered(registry))
        )
    return registry.module_dict[name]

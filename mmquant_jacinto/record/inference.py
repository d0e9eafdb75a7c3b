"""Inference: which regions it runs, of those that only a loss was seen to call.

A prediction without detections leaves the heads behind them idle; there the loss shows
what they call. But what a loss alone ever calls (weights of losses, auxiliary heads) is
no part of the network that is deployed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Callable

import torch
from mmengine.model import BaseModel
from torch import nn

from .side_effects import untouched

LOSS = 'loss'
# Thresholds of scores, as settings and attributes are called.
_THRESHOLD = re.compile(r'(score|conf|cls|obj)\w*_thr')
# Enough detections to reach what is behind them, and few enough to be quick.
_MOST_DETECTIONS = 32


def mode_of(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """The ``mode`` that a model of MMEngine is called with; None for any other."""
    if not isinstance(model, BaseModel):
        return None
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:  # the model will say so itself
        return None
    return bound.arguments.get('mode')


def reached_by_inference(
    model: nn.Module, passes: Iterable[Callable[[], Any]], names: Collection[str]
) -> set[str]:
    """Which of some modules a prediction runs that finds something everywhere.

    Args:
        model (nn.Module): Left as it was.
        passes (Iterable[Callable]): Each predicts once.
        names (Collection[str]): The modules.

    Returns:
        Set[str]: Of ``names``. Where such a prediction fails, those that belong to
        something with a method ``predict``.
    """
    found: set[str] = set()

    def note(name: str) -> Callable:
        return lambda *_: found.add(name)

    with untouched(model), torch.no_grad():
        model.eval()
        for module in model.modules():
            _find_everything(module)
        handles = [
            model.get_submodule(name).register_forward_pre_hook(note(name))
            for name in names
        ]
        try:
            for run in passes:
                run()
        except Exception:  # noqa: B902 - a model need not expect such detections
            found |= {name for name in names if _predicts(model, name)}
        finally:
            for handle in handles:
                handle.remove()
    return found | {name for name in names if _is_in_another_model(model, name)}


def _find_everything(module: nn.Module) -> None:
    """Lowers the thresholds of a module; undone by :func:`untouched`."""
    for name, value in list(vars(module).items()):
        if name.endswith('test_cfg') and isinstance(value, Mapping):
            setattr(module, name, _lowered(value))
        elif isinstance(value, float) and _THRESHOLD.search(name):
            setattr(module, name, -1.0)


def _lowered(settings: Any) -> Any:
    """A copy of settings that keeps all scores, and few boxes."""
    if not isinstance(settings, Mapping):
        return settings
    lowered: Any = type(settings)()
    for key, value in settings.items():
        if _THRESHOLD.search(key):
            value = -1.0
        elif key == 'max_per_img' and isinstance(value, int):
            value = min(value, _MOST_DETECTIONS)
        lowered[key] = _lowered(value)
    return lowered


def _ancestors(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules between a model and one of its parts, and the part itself."""
    parts = name.split('.')
    return [
        model.get_submodule('.'.join(parts[: end + 1])) for end in range(len(parts))
    ]


def _predicts(model: nn.Module, name: str) -> bool:
    return any(hasattr(module, 'predict') for module in _ancestors(model, name))


def _is_in_another_model(model: nn.Module, name: str) -> bool:
    """Whether it belongs to a student, whose teacher predicts."""
    return any(isinstance(module, BaseModel) for module in _ancestors(model, name))

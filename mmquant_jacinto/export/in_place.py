"""In place: a file computes what the modules it holds would, in their model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QuantizeError
from ..execute.integer.carried_integers import promise_integers
from ..wrappers.call_arguments import named_arguments
from .graph.layout import decode
from .session import Session


@contextmanager
def in_place_of_modules(model: nn.Module, session: Session) -> Iterator[None]:
    """Context in which a file computes what the modules it holds would.

    Everything else of the model (preprocessing, decoding, NMS) runs as it is.

    Args:
        model (nn.Module): The float model of the config; its weights do not matter. Or
            a quantized one, which computes what the file lacks.
        session (Session): The file.

    Raises:
        QuantizeError: If the model lacks a module that the file names.
    """
    layout = session.layout
    session.check_fits(model)
    outputs: dict[str, Tensor] = {}
    calls: dict[str, list[Any]] = {}
    for item in layout:
        calls.setdefault(item['region'], []).append(item['output'])
    counts: dict[str, int] = {}

    def replacement(region: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if region == layout[0]['region'] and not counts.get(region, 0) % len(
                calls[region]
            ):
                counts.clear()
                given = named_arguments(forwards[region], args, kwargs)
                device = next(iter(given.values())).device
                outputs.clear()
                # To a quantized model these are no calls of its own.
                with torch._C.DisableTorchFunction():
                    found = session(session.of_region(given))
                    outputs.update((name, x.to(device)) for name, x in found.items())
                    for x in outputs.values():
                        promise_integers(x)
            index = counts.get(region, 0)
            counts[region] = index + 1
            return decode(calls[region][index % len(calls[region])], outputs)

        return forward

    modules = []
    # Their own signatures have the names of the file's inputs.
    forwards: dict[str, Any] = {}
    for region in calls:
        try:
            modules.append((model.get_submodule(region), replacement(region)))
        except AttributeError:
            raise QuantizeError(
                f'the file holds the module {region!r}, which {type(model).__name__} '
                'does not have: it was made from another config'
            ) from None
    for region, (module, forward) in zip(calls, modules):
        forwards[region], module.forward = module.forward, forward
    try:
        yield
    finally:
        for module, _ in modules:
            del module.forward

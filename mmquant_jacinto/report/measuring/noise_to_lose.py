"""Noise that goes where a layer is raised: what a budget ranks layers by."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Callable

from ...execute.quantization import Quantization
from .sensitivity import WEIGHT, measure_sensitivity


def noise_to_lose(
    quantization: Quantization,
    run: Callable[..., Any],
    batches: Collection[Any],
    level: Any,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """What raising each layer takes off the noise in the network's outputs.

    Args:
        quantization (Quantization): With ranges, its model in evaluation mode.
        run (Callable): Runs the model once, given a behaviour and a ``batch``.
        batches (Collection): Of one image each; equally many in each process.
        level (int | bool): A width, or False for float.
        seed (int): See :func:`~.sensitivity.measure_sensitivity`.

    Returns:
        Dict[str, Dict[str, float]]: Call site, or quantizer of an input, to the noise
        to signal that goes with its ``'weight'`` and its ``'activation'``. Without
        what is as wide already; an input is never in float.

    Raises:
        QuantizeError: If no output has a finite gradient.
    """
    plan = quantization.plan
    activations = {spec.name: spec.format.bits for spec in plan.activations}
    widths = {spec.format.bits for spec in plan.specs}
    widths |= {level} if level else set()
    measured = measure_sensitivity(quantization, run, batches, sorted(widths), seed)
    found: dict[str, dict[str, float]] = {}
    for item in measured:
        step = plan.steps.get(item.name)
        if step is None and not level:
            continue
        if item.kind == WEIGHT:
            bits = plan.weights[step.weight].format.bits
        else:
            bits = activations.get(item.name if step is None else step.output)
        if bits is None or level and bits >= level:
            continue
        noise = item.noise[bits] - (item.noise[level] if level else 0.0)
        if noise > 0:
            found.setdefault(item.name, {})[item.kind] = noise
    return found

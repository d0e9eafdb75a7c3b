"""Noise that goes where a layer is raised: what a budget ranks layers by."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Callable

from ...execute.quantization import Quantization
from ...plan.open_results import gives_reals
from ...plan.plan import Plan
from ...record import ops
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
        to signal that goes with its ``'weight'`` and its ``'activation'``: in float,
        where the target has real numbers, that of what it reads. Without what is as
        wide already; an input is never in float.

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
    if level or not gives_reals(plan.config['target']):
        return found
    return by_reader(plan, found)


def by_reader(
    plan: Plan, noise: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Noise by what has to be in float for it to go: the only reader of a tensor.

    A tensor that a quantized layer reads is on a grid, whatever makes it.

    Args:
        plan (Plan): Of the network.
        noise (Mapping[str, Mapping[str, float]]): By what makes a tensor.

    Returns:
        Dict[str, Dict[str, float]]: The same by call, without what more than one call
        reads.
    """
    readers: dict[str, set[str]] = {}
    for name, step in plan.steps.items():
        for quantizer in filter(None, (*step.inputs, *step.again)):
            readers.setdefault(quantizer, set()).add(name)
    found: dict[str, dict[str, float]] = {}
    for name, kinds in noise.items():
        step = plan.steps[name]
        for kind, value in kinds.items():
            reading = readers.get(step.output or '', set())
            if kind == WEIGHT or not reading:
                reading = {name}
            if len(reading) == 1:
                (reader,) = reading
                if plan.steps[reader].kind in (ops.PASS, ops.CAT):
                    continue  # what moves elements computes nothing
                parts = found.setdefault(reader, {})
                parts[kind] = parts.get(kind, 0.0) + value
    return found

"""Sensitivity: what each weight and activation puts into the outputs, by width.

Without labels and without a search: the errors of each layer at each width, weighed
with what the outputs feel of them (:mod:`gradients`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import QuantizeError
from ...execute.quantization import Quantization
from ...execute.state import State
from ...plan.plan import Step, module_of
from ...quantizers.activation_grids import GridFormats
from ...quantizers.kernels.fake_quantize import fake_quantize
from ...quantizers.observers import is_distributed
from ...quantizers.weight_grids import WeightGrids
from ...quantizers.weights import quantize_weight
from ...record import ops
from ...targets.grid import Grid
from ..content import plain
from .gradients import GradientProbe, probe_gradients
from .signals import FloatSignals, sample

WEIGHT, ACTIVATION = 'weight', 'activation'


@dataclass(frozen=True)
class LayerSensitivity:
    """Noise to signal that a tensor puts into the network's outputs.

    Args:
        name (str): Call site.
        module (str): Its module: what ``quantize.overrides`` names.
        kind (str): ``'weight'`` or ``'activation'``.
        noise (Dict[int, float]): By width.
    """

    name: str
    module: str
    kind: str
    noise: Mapping[int, float]


class WidthSignals(FloatSignals):
    """Runs in float and weighs the errors of several widths.

    Args:
        state (State): Of the quantized model, with ranges.
        widths (Sequence[int]): To measure at.
    """

    def __init__(self, state: State, widths: Sequence[int]) -> None:
        super().__init__(state)
        self.widths = tuple(widths)
        self._layers, self._weight_grids = [], []
        for width in widths:
            plan = state.plan.with_weight_bits(dict.fromkeys(state.plan.weights, width))
            layers = {
                name: layer.with_spec(plan.weights[name])
                for name, layer in state.layers.items()
            }
            for name, layer in layers.items():
                layer.correction = state.layers[name].correction
            grids = WeightGrids(plan, layers, state.activations)
            grids.compute(state.bias_correction)
            self._layers.append(layers)
            self._weight_grids.append(grids)
        self._grids = [self._grids_of(width) for width in widths]

    def _grids_of(self, width: int) -> list[Grid]:
        """Grids of all activations at a width, with the ranges that they have."""
        activations = self.state.activations
        formats = [spec.format.with_bits(width) for spec in activations.specs]
        activations.settle()
        ends = activations.low.detach().cpu(), activations.high.detach().cpu()
        scale, low, high = GridFormats.of(formats).grids(*ends)
        columns = scale.tolist(), low.long().tolist(), high.long().tolist()
        return [
            Grid(step, first, last, 2**width, fmt.rounding)
            for fmt, step, first, last in zip(formats, *columns)
        ]

    def _alone(
        self, step: Step, func: Callable, args: tuple, kwargs: dict
    ) -> list[Tensor]:
        x = args[0] if args else kwargs['input']
        found = []
        for layers, grids in zip(self._layers, self._weight_grids):
            layer = layers[step.weight]
            weight, bias = layer.folded()
            size = layer.along_channels(grids.step(step.weight))
            on_grid = quantize_weight(layer.scaled(weight), size, layer.spec.format)
            given = ops.replace_operands(args, kwargs, x, layer.unscaled(on_grid), bias)
            found.append(func(*given[0], **given[1]))
        return found

    def _errors(
        self, quantizer: str, x: Tensor, own: list[Tensor], clip: Any
    ) -> list[Tensor]:
        # A tensor that no weight made has no errors of one.
        own = own if len(own) == len(self.widths) else [x] * len(self.widths)
        bounded = [item if clip is None else item.clamp(*clip) for item in own]
        weights = [sample(self.visible(quantizer, item)) for item in bounded]
        return [*weights, *(self._at(grids, quantizer, x) for grids in self._grids)]

    def _at(self, grids: list[Grid], quantizer: str, x: Tensor) -> Tensor:
        """A sample of a tensor on the grid of a quantizer, at another width."""
        x, factor = self.visible(quantizer, x), self.activations.factor(quantizer)
        grid = grids[self.activations.index[quantizer]]
        scaled = x if factor is None else x / factor
        rounded = fake_quantize(scaled, grid, None, False)
        return self.visible(
            quantizer, sample(rounded if factor is None else rounded * factor)
        )


def measure_sensitivity(
    quantization: Quantization,
    run: Callable[..., Any],
    batches: Collection[Any],
    widths: Sequence[int],
    seed: int = 0,
) -> list[LayerSensitivity]:
    """Ranks weights and activations by what they put into the outputs.

    Args:
        quantization (Quantization): With ranges, its model in evaluation mode.
        run (Callable): Runs the model once, given a behaviour and a ``batch``.
        batches (Collection): Of one image each; equally many in each process.
        widths (Sequence[int]): To measure at.
        seed (int): Of the first projection; another one in each process.

    Returns:
        List[LayerSensitivity]: Of all processes together, worst first at the narrowest
        width.

    Raises:
        QuantizeError: If no output has a finite gradient.
    """
    phase = quantization.phase
    probe = GradientProbe(quantization)
    signals = WidthSignals(quantization, widths)
    try:
        for number, batch in enumerate(batches):
            call = partial(run, batch=batch)
            signals.gradients = probe_gradients(probe, call, seed + number)
            with torch.no_grad():
                run(signals, batch)
    finally:
        quantization.set_phase(phase)
    plan, count = quantization.plan, len(widths)
    found = []
    for name, noise in _everywhere(signals.noise, len(batches)).items():
        step = plan.steps.get(name)
        parts = []
        if step is None or step.output is not None:
            parts.append((ACTIVATION, noise[count:]))
        if step is not None and step.weight is not None:
            parts.append((WEIGHT, noise[:count]))
        found += [
            LayerSensitivity(name, module_of(name), kind, dict(zip(widths, part)))
            for kind, part in parts
        ]
    if not found:
        raise QuantizeError(
            'nothing was measured: on no image has an output of the network a finite '
            'gradient; check the checkpoint'
        )
    least = min(widths)
    return sorted(found, key=lambda item: -item.noise[least])


def _everywhere(rows: Mapping[str, Tensor], count: int) -> dict[str, list[float]]:
    """Means over the images of all processes, by step; a step may be in one alone."""
    own = {name: row.nan_to_num(0.0, 0.0, 0.0).tolist() for name, row in rows.items()}
    parts: list[Any] = [(count, own)]
    if is_distributed():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (count, own))
    images = max(1, sum(part[0] for part in parts))
    total: dict[str, list[float]] = {}
    for _, found in parts:
        for name, row in found.items():
            known = total.get(name, [0.0] * len(row))
            total[name] = [a + b for a, b in zip(known, row)]
    return {name: [value / images for value in row] for name, row in total.items()}


def to_json(found: Sequence[LayerSensitivity], widths: Sequence[int]) -> str:
    """Serializes a ranking: ``widths``, and ``layers`` as above."""
    return json.dumps(plain(dict(widths=list(widths), layers=list(found))), indent=1)

"""Reconstruct: layer after layer, weights that give the float model's outputs.

A layer is seen with the inputs that it will have, behind layers that are quantized
already, and asked for the float model's output (the asymmetric reconstruction of
AdaRound, arXiv 2004.10568). So a layer makes up for the errors before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from ..config.sections import Rounding
from ..execute.behaviour import Behaviour
from ..execute.fake_quantize import Simulate
from ..execute.state import State
from ..plan.plan import INPUT, Plan
from ..quantizers.layers import Layer, channel_rows, from_channel_rows
from ..quantizers.observers import is_distributed
from .layer_samples import (
    Collected,
    CollectInputs,
    CollectOutputs,
    LayerRows,
    count_rows,
    has_rows,
)
from .rounding import RoundingTask, output_of, round_weight

# Float outputs that are held at a time.
MAX_OUTPUTS = 2**26
# A layer whose float output differs from its quantized input's by more than this
# share sees something else in each pass: boxes proposed by the model itself.
UNRELATED = 0.5


def generations(plan: Plan) -> list[list[str]]:
    """Weight quantizers in an order in which each depends on earlier ones only.

    Args:
        plan (Plan): Its steps are in the order of their execution.

    Returns:
        List[List[str]]: Those of one list do not depend on each other.
    """
    depth_of_tensor = {s.name: 0 for s in plan.activations if s.kind == INPUT}
    depth_of_layer: dict[str, int] = {}
    joined: dict[str, list[int]] = {}  # depths of what a call is one with
    deepest = 0
    for name, step in plan.steps.items():
        if step.follows:
            continue
        depths = [depth_of_tensor[x] for x in step.inputs if x in depth_of_tensor]
        # The gate of x * sigmoid(x) reads what its product does.
        depths += joined.get(name) or joined.get(step.joins or '', [])
        if len(depths) < len(step.inputs) or not depths:
            depths.append(deepest)  # what is in float may come from anywhere
        depth = max(depths)
        if step.weight is not None:
            depth = max(depth + 1, depth_of_layer.get(step.weight, 0))
            depth_of_layer[step.weight] = depth
        deepest = max(deepest, depth)
        if step.joins is not None:
            joined.setdefault(step.joins, []).append(depth)
        if step.output is not None:
            known = depth_of_tensor.get(step.output, 0)
            depth_of_tensor[step.output] = max(depth, known)
    found: dict[int, list[str]] = {}
    for name, depth in depth_of_layer.items():
        found.setdefault(depth, []).append(name)
    return [found[depth] for depth in sorted(found)]


class Reconstruction:
    """Chooses the weights of all layers of a model.

    Args:
        state (State): Of the quantized model, its ranges measured.
        run (Callable): Runs the model with a behaviour on all batches, without
            gradients; ends a pass at
            :class:`~mmquant_jacinto.methods.layer_samples.Enough`.
        batches (int): How many batches that are, in this process.
        options (Rounding): See ``quantize.rounding``.
    """

    def __init__(
        self,
        state: State,
        run: Callable[[Behaviour], None],
        batches: int,
        options: Rounding,
    ) -> None:
        self.state = state
        self.run = run
        self.batches = batches
        self.options = options
        simulation = Simulate(state)
        with torch.no_grad():
            simulation.begin()
        self.grids = simulation.grids
        self.decided: dict[str, tuple[Tensor, Tensor]] = {}

    def reconstruct(self) -> None:
        """Writes weights, their scales and bias corrections."""
        for part in self._parts():
            outputs = self._collect([name for names in part for name in names])
            self.run(CollectOutputs(self.state, outputs))
            for names in part:
                inputs = self._collect(names)
                self.run(CollectInputs(self.state, inputs, self.decided))
                for name in names:
                    rows = inputs.take(name), outputs.take(name)
                    # Proposals of the model itself: not the same in both passes.
                    if None in rows or len(rows[0]) != len(rows[1]):
                        continue
                    finite = LayerRows(*rows).finite()
                    if len(finite.inputs):
                        self.decided[name] = self._decide(name, finite)
        self._write()

    def _collect(self, names: list[str]) -> Collected:
        return Collected(self.state, names, self.batches)

    def _parts(self) -> Iterable[list[list[str]]]:
        """Generations of layers whose float outputs fit into memory together."""
        layers = self.state.layers
        heads = [s for s in self.state.plan.steps.values() if not s.follows]
        steps = {step.weight: step for step in heads}
        others = [name for name in layers if not has_rows(layers[name], steps[name])]
        if others:
            print_log('Rounded to nearest stay ' + ', '.join(others), 'current')
        part: list[list[str]] = []
        held = 0
        for names in generations(self.state.plan):
            names = [name for name in names if name not in others]
            size = sum(count_rows(layers[n]) * layers[n].spec.channels for n in names)
            if part and held + size > MAX_OUTPUTS:
                yield part
                part, held = [], 0
            part.append(names)
            held += size
        yield part

    def _decide(self, name: str, rows: LayerRows) -> tuple[Tensor, Tensor]:
        """Weight on its grid, and the bias that gives the float outputs' means."""
        layer = self.state.layers[name]
        with torch.no_grad():
            folded, bias = layer.folded()
        weight = channel_rows(layer, folded.detach()).float()
        inputs, outputs = rows
        inputs_mean, outputs_mean = inputs.mean(0, keepdim=True), outputs.mean(0)
        inputs, target = inputs - inputs_mean, outputs - outputs_mean
        own = output_of(inputs, weight)
        if (own - target).square().sum() > UNRELATED * target.square().sum():
            target, outputs_mean = own, output_of(inputs_mean, weight)[0]
            if bias is not None:
                outputs_mean = outputs_mean + bias.detach()
        step = self.grids.step(name)[:, None]
        task = RoundingTask(inputs, target, weight, step, layer.spec.format)
        integers = round_weight(task, self.options)
        if is_distributed():
            dist.broadcast(integers, 0)
        on_grid = integers * step
        bias = outputs_mean - output_of(inputs_mean, on_grid)[0]
        return from_channel_rows(layer, on_grid), bias

    @torch.no_grad()
    def _write(self) -> None:
        state = self.state
        state.weight_scale.copy_(self.grids.all_steps)
        for name, (weight, bias) in self.decided.items():
            layer = state.layers[name]
            known = layer.folded()[1]
            state.correction(name).copy_(bias if known is None else bias - known)
            layer.write(_unfolded(layer, weight))


def _unfolded(layer: Layer, weight: Tensor) -> Tensor:
    """The weight which becomes ``weight`` when the normalization is folded in."""
    if layer.norm is None:
        return weight
    factor = layer.along_channels(layer.fold_factor())
    return torch.where(factor == 0, layer.weight, weight / factor)

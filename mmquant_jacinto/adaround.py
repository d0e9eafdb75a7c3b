"""AdaRound: each weight is rounded up or down, whichever serves the layer's output.

Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv
2004.10568), layer by layer. The layer's quantized input is asked to give the float
model's output (the paper's asymmetric reconstruction).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from .config import AdaRound
from .execute import Behaviour
from .formats import TensorFormat, integer_bounds
from .layer_rows import (
    LayerRows,
    collect,
    count_rows,
    has_rows,
    row_elements,
)
from .observers import is_distributed
from .simulate import Simulate, State
from .weights import Layer, channel_rows, from_channel_rows

# Of the rectified sigmoid, sections 3.2 and 5 of the paper.
ZETA, GAMMA = 1.1, -0.1
BETA_START, BETA_END = 20.0, 2.0
WARMUP = 0.2  # share of the iterations without regularizer
BATCH = 256  # rows of an iteration
# Bytes of the rows that are held at a time, of several layers if they fit.
MEMORY = 2**29
# A layer whose float output differs from its quantized input's by more than this
# share sees something else in each pass: boxes proposed by the model itself.
UNRELATED = 0.5


def soft_round(v: Tensor) -> Tensor:
    """The rectified sigmoid ``h(V)`` of eq. 23: from 0 (down) to 1 (up)."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _inverse(rest: Tensor) -> Tensor:
    """``V`` for which ``h(V)`` is the part that rounding down takes away."""
    return -((ZETA - GAMMA) / (rest - GAMMA) - 1).log()


def output_of(inputs: Tensor, weight: Tensor) -> Tensor:
    """What rows (n, G, k) give through a weight (C, k): (n, C)."""
    groups = inputs.shape[1]
    return torch.einsum(
        'ngk,gck->ngc', inputs, weight.unflatten(0, (groups, -1))
    ).flatten(1)


def _squared_error(inputs: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each output channel: (C,)."""
    return (output_of(inputs, weight) - target).square().mean(0)


def round_weight(
    inputs: Tensor,
    target: Tensor,
    weight: Tensor,
    step: Tensor,
    fmt: TensorFormat,
    options: AdaRound,
) -> Tensor:
    """Chooses how each weight is rounded.

    Args:
        inputs (Tensor): What the weight is multiplied with: (n, G, k), its mean zero.
        target (Tensor): What should come out: (n, C), its mean zero.
        weight (Tensor): A row for each output channel: (C, k).
        step (Tensor): Of each channel's grid: (C, 1).
        fmt (TensorFormat): Of the weight.
        options (AdaRound): Iterations and the like.

    Returns:
        Tensor: Integers, in a tensor like ``weight``. In no channel is the error
        larger than that of rounding to nearest.
    """
    low, high = integer_bounds(fmt)
    nearest = (weight / step).round_().clamp_(low, high)
    floor = (weight / step).floor_()
    rest = (weight / step - floor).clamp_(0, 1)
    v = _inverse(rest.clamp(0.01, 0.99)).requires_grad_()
    noise = output_of(inputs, nearest * step - weight).square().sum(1).mean()
    # Rounding at random adds a twelfth for each weight. In this unit the regularizer
    # weighs the same in all layers.
    unit = weight.numel() / 12 / noise.clamp(min=torch.finfo(noise.dtype).tiny)
    optimizer = torch.optim.Adam([v], lr=options.lr)
    generator = torch.Generator().manual_seed(0)
    warm = int(WARMUP * options.iterations)
    for iteration in range(options.iterations):
        rows = torch.randint(len(inputs), (BATCH,), generator=generator)
        rows = rows.to(inputs.device)
        up = soft_round(v)
        soft = (floor + up).clamp(low, high) * step
        error = output_of(inputs[rows], soft) - target[rows]
        loss = error.square().sum(1).mean() * unit
        if iteration >= warm:
            done = (iteration - warm) / max(1, options.iterations - warm)
            beta = BETA_END + (BETA_START - BETA_END) * (1 - done)
            regularizer = (1 - (2 * up - 1).abs().pow(beta)).sum()
            loss = loss + options.regularization * regularizer
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chosen = (floor + (soft_round(v) >= 0.5)).clamp_(low, high)
        error, known = (
            _squared_error(inputs, integers * step, target)
            for integers in (chosen, nearest)
        )
        return torch.where((error < known)[:, None], chosen, nearest)


class Rounder:
    """Rounds the weights of all layers of a model, a few layers at a time.

    Args:
        state (State): Of the quantized model, its ranges measured.
        run (Callable): Runs the model with a behaviour on all batches.
        batches (int): How many batches that are, in this process.
        options (AdaRound): See ``quantize.adaround``.
    """

    def __init__(
        self,
        state: State,
        run: Callable[[Behaviour], None],
        batches: int,
        options: AdaRound,
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

    def round_all(self) -> None:
        """Rounds, and writes weights, their scales and bias corrections."""
        for names in self._parts():
            found = collect(self.state, self.run, names, self.decided, self.batches)
            for name in names:
                if name in found:
                    self.decided[name] = self._round(name, found.pop(name))
        self._write()

    def _layers(self) -> tuple[list[str], list[str]]:
        """Weight quantizers in the order of execution: with rows, and without."""
        heads = [s for s in self.state.plan.steps.values() if not s.follows]
        first = {}
        for step in heads:
            if step.weight is not None:
                first.setdefault(step.weight, step)
        there = {
            name: has_rows(self.state.layers[name], step)
            for name, step in first.items()
        }
        return [n for n in there if there[n]], [n for n in there if not there[n]]

    def _parts(self) -> Iterable[list[str]]:
        """Layers whose rows fit into memory together."""
        names, others = self._layers()
        if others:
            print_log(
                'AdaRound: rounded to nearest stay ' + ', '.join(others), 'current'
            )
        part: list[str] = []
        used = 0
        for name in names:
            layer = self.state.layers[name]
            row = row_elements(layer) + layer.spec.channels
            size = 4 * count_rows(layer) * row
            if part and used + size > MEMORY:
                yield part
                part, used = [], 0
            part.append(name)
            used += size
        if part:
            yield part

    def _round(self, name: str, rows: LayerRows) -> tuple[Tensor, Tensor]:
        """Weight on its grid, and the bias that gives the float outputs' means."""
        layer = self.state.layers[name]
        with torch.no_grad():
            folded, bias = layer.folded()
            weight = channel_rows(layer, folded.detach()).float()
            inputs, outputs = rows
            mean = inputs.mean(0, keepdim=True)
            inputs = inputs - mean
            outputs_mean = outputs.mean(0)
            target = outputs - outputs_mean
            own = output_of(inputs, weight)
            if (own - target).square().sum() > UNRELATED * target.square().sum():
                target = own
                outputs_mean = output_of(mean, weight)[0] + (
                    0 if bias is None else bias
                )
        step = self.grids.step(name)[:, None]
        fmt = layer.spec.format
        integers = round_weight(inputs, target, weight, step, fmt, self.options)
        with torch.no_grad():
            if is_distributed():
                dist.broadcast(integers, 0)
            on_grid = integers * step
            corrected = outputs_mean - output_of(mean, on_grid)[0]
            return from_channel_rows(layer, on_grid), corrected

    @torch.no_grad()
    def _write(self) -> None:
        state = self.state
        state.weight_scale.copy_(self.grids.all_steps)
        for name, (weight, bias) in self.decided.items():
            layer = state.layers[name]
            known = layer.folded()[1]
            state.correction(name).copy_(bias if known is None else bias - known)
            layer.weight.copy_(_unfolded(layer, weight))


def _unfolded(layer: Layer, weight: Tensor) -> Tensor:
    """The weight which becomes ``weight`` when the normalization is folded in."""
    if layer.norm is None:
        return weight
    factor = layer.along_channels(layer.fold_factor())
    return torch.where(factor == 0, layer.weight, weight / factor)

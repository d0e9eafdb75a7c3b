"""Trials: other settings on the measured images, before anybody calibrates anew.

What would have 16 bits runs in float, which is what 16 bits come to. Weights on other
grids are put there as they are. Where calibration corrected the biases, each layer's
output is moved to its float mean, with other settings and with the present ones: the
corrections that are there belong to the present rounding errors.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..execute.quantization import Quantization
from ..quantizers.weight_grids import WeightGrids
from ..quantizers.weights import quantize_weight
from .content import LayerReport, Trial
from .signals import Differences, Key, QuantizedSignals, decibels

# Layers that are raised: as few as make this share of the noise, and no more.
SHARE = 0.7
MOST_MODULES = 8
# Parts of a block that one override covers together.
PARTS = frozenset(
    'conv bn norm activate act relu silu depthwise_conv pointwise_conv'.split()
)
CHANNELS = 'per_channel=True'


def block_of(module: str) -> str:
    """The block that a convolution, normalization or activation is a part of."""
    parent, _, last = module.rpartition('.')
    return parent if parent and last.rstrip('0123456789') in PARTS else module


def overrides_line(modules: Sequence[str], bits: int = 16) -> str:
    """A line of the config that gives modules a width."""
    inner = ', '.join(f'{module!r}: {bits}' for module in modules)
    return f'overrides={{{inner}}}'


class Trials:
    """Runs the quantized network under other settings.

    Args:
        state (Quantization): Of the model.
        run (Callable): Runs the model, given a behaviour and a batch.
        batches (Sequence): The measured images.
        references (Sequence[Mapping]): Of the network's outputs in float, by image.
        means (Sequence[Mapping]): Of layers' outputs in float, by image.
        ends (Collection[str]): Steps that give the outputs.
    """

    def __init__(
        self,
        state: Quantization,
        run: Callable,
        batches: Sequence[Any],
        references: Sequence[Mapping[Key, Tensor]],
        means: Sequence[Mapping[str, Tensor]],
        ends: Collection[str],
    ) -> None:
        self.state = state
        self._run = run
        self.batches = batches
        self.references = references
        corrected = bool(state.bias_correction.any())
        self.means = means if corrected else [{} for _ in batches]
        self.ends = ends

    def run(
        self, layers: Sequence[LayerReport], allows: Callable
    ) -> tuple[list[Trial], list[str]]:
        """Tries what may help.

        Args:
            layers (Sequence[LayerReport]): As measured.
            allows (Callable): Whether so many more passes are within the time.

        Returns:
            Tuple[List[Trial], List[str]]: Best first; and what there was no time for.
        """
        trials, left, before = [], [], None
        for line, why, kwargs in self._candidates(layers):
            # The first of them takes a pass with the present settings too.
            if not allows(len(self.batches) * (1 + (before is None))):
                left.append(f'a trial of {line}')
                continue
            before = self._measure() if before is None else before
            after = self._measure(**kwargs())
            if before is not None and after is not None:
                trials.append(Trial(line, why, before, after))
        return sorted(trials, key=lambda trial: -trial.gain), left

    def _candidates(self, layers: Sequence[LayerReport]) -> list[tuple]:
        plan = self.state.plan
        weights = [n for n, spec in plan.weights.items() if spec.format.bits < 16]
        tensors = [spec.name for spec in plan.activations if spec.format.bits < 16]
        found: list[tuple] = []
        modules = costliest_blocks(layers)
        if modules:
            raised = members(layers, modules)
            why = f'the {len(modules)} blocks that cost most'
            found.append((overrides_line(modules), why, lambda: dict(raised=raised)))
        coarse = [n for n, s in plan.weights.items() if not s.format.per_channel]
        if coarse:
            why = f'{len(coarse)} weights have one scale for all channels'
            found.append((CHANNELS, why, lambda: dict(changed=self._channels(coarse))))
        low = min((spec.format.bits for spec in plan.specs), default=8)
        if tensors:
            line = f'bits=dict(weight={low}, activation=16)'
            found.append((line, 'all activations', lambda: dict(raised=tensors)))
        if weights:
            line = f'bits=dict(weight=16, activation={low})'
            found.append((line, 'all weights', lambda: dict(raised=weights)))
        return found

    @torch.no_grad()
    def _measure(
        self,
        raised: Collection[str] = (),
        changed: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> float | None:
        """Median signal to noise of the outputs, in decibels."""
        found = Differences()
        images = zip(self.batches, self.references, self.means)
        for batch, reference, means in images:
            behaviour = QuantizedSignals(
                self.state, reference, found, raised, self.ends, changed, means
            )
            self._run(behaviour, batch)
        ratios = [decibels(*pair) for pair in found.ratios().values()]
        known = [ratio for ratio in ratios if ratio is not None]
        return statistics.median(known) if known else None

    @torch.no_grad()
    def _channels(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights and biases with a scale for each channel."""
        state = self.state
        layers = {}
        for name, layer in state.layers.items():
            fmt = replace(layer.spec.format, per_channel=True)
            layers[name] = layer.with_spec(replace(layer.spec, format=fmt))
        grids = WeightGrids(state.plan, layers, state.activations)
        grids.compute(state.bias_correction)
        found = {}
        for name in names:
            layer = layers[name]
            if layer.norm_is_live:
                continue
            layer.correction = state.layers[name].correction
            weight, bias = layer.folded()
            step = layer.along_channels(grids.step(name))
            scaled = quantize_weight(layer.scaled(weight), step, layer.spec.format)
            correction = state.correction(name)
            found[name] = (
                layer.unscaled(scaled),
                correction if bias is None else bias + correction,
            )
        return found


def costliest_blocks(layers: Sequence[LayerReport]) -> list[str]:
    """The fewest blocks that make :data:`SHARE` of the outputs' noise."""
    shares: dict[str, float] = {}
    for layer in layers:
        if layer.kind != 'input':
            block = block_of(layer.module)
            shares[block] = shares.get(block, 0.0) + (layer.share or 0.0)
    ranked = sorted(shares, key=lambda block: -shares[block])
    chosen, total = [], 0.0
    for block in ranked[:MOST_MODULES]:
        if total >= SHARE or not shares[block] or not block:
            break
        chosen.append(block)
        total += shares[block]
    return chosen


def members(layers: Sequence[LayerReport], blocks: Collection[str]) -> set[str]:
    """Weight and activation quantizers of some blocks."""
    found: set[str] = set()
    for layer in layers:
        if block_of(layer.module) in blocks:
            found.add(layer.activation.name)
            if layer.weight is not None:
                found.add(layer.weight.name)
    return found

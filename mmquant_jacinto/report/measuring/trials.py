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

from ...quantizers.weight_grids import WeightGrids
from ...quantizers.weights import quantize_weight
from ..content import Finding, LayerReport, Trial
from .signals import Differences, FloatSignals, Key, QuantizedSignals, decibels

# Blocks raised together: as few as make this share of the noise, up to as many.
RAISED = ((0.6, 8), (0.9, 24))
# Of a block's noise, from which on its weight or its activations alone are raised.
ONE_KIND = 0.8
# Parts of a block that one override covers together.
PARTS = frozenset(
    'conv bn norm activate act relu silu depthwise_conv pointwise_conv'.split()
)
FINDINGS_TRIED = 4
CHANNELS = 'per_channel=True'


def block_of(module: str) -> str:
    """The block that a convolution, normalization or activation is a part of."""
    parent, _, last = module.rpartition('.')
    return parent if parent and last.rstrip('0123456789') in PARTS else module


def overrides_line(widths: Mapping[str, str]) -> str:
    """A line of the config that gives modules widths, by module."""
    inner = ', '.join(f'{module!r}: {width}' for module, width in widths.items())
    return f'overrides={{{inner}}}'


class Trials:
    """Runs the quantized network under other settings.

    Args:
        signals (FloatSignals): Of the model; it has its weights on their grids.
        run (Callable): Runs the model, given a behaviour and one of ``images``.
        images (Sequence): The measured images, as ``run`` takes them.
        references (Sequence[Mapping]): Of the network's outputs in float, by image.
        means (Sequence[Mapping]): Of layers' outputs in float, by image.
        ends (Collection[str]): Steps that give the outputs.
    """

    def __init__(
        self,
        signals: FloatSignals,
        run: Callable,
        images: Sequence[Any],
        references: Sequence[Mapping[Key, Tensor]],
        means: Sequence[Mapping[Key, Tensor]],
        ends: Collection[str],
    ) -> None:
        self.signals, self.state = signals, signals.state
        self._run = run
        self.images = images
        self.references = references
        self.means = means if signals.corrects else [{} for _ in images]
        self.ends = ends
        self._before: float | None = None

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
        trials, left = [], []
        for line, why, kwargs in self._candidates(layers):
            # The first of them takes a pass with the present settings too.
            if not allows(len(self.images) * (1 + (self._before is None))):
                wide = line.startswith('overrides')
                left.append(f'a trial of {f"16 bits for {why}" if wide else line}')
                continue
            after = self._measure(**kwargs())
            if self.before is not None and after is not None:
                trials.append(Trial(line, why, self.before, after))
        return sorted(trials, key=lambda trial: -trial.gain), left

    @property
    def before(self) -> float | None:
        """float, optional: Decibels with the present settings."""
        if self._before is None:
            self._before = self._measure()
        return self._before

    def try_findings(
        self,
        layers: Sequence[LayerReport],
        findings: Sequence[Finding],
        allows: Callable,
    ) -> None:
        """Tries the overrides of the first findings, each by itself."""
        for finding in findings[:FINDINGS_TRIED]:
            if finding.tried is None and finding.widths and allows(len(self.images)):
                after = self._measure(raised=members(layers, finding.widths))
                if self.before is not None and after is not None:
                    finding.tried = after - self.before

    def _candidates(self, layers: Sequence[LayerReport]) -> list[tuple]:
        plan = self.state.plan
        weights = [n for n, spec in plan.weights.items() if spec.format.bits < 16]
        tensors = [spec.name for spec in plan.activations if spec.format.bits < 16]
        found: list[tuple] = []
        for share, most in RAISED:
            widths = costliest_blocks(layers, share, most)
            line, raised = overrides_line(widths), members(layers, widths)
            if widths and line not in [item[0] for item in found]:
                why = f'the {len(widths)} blocks that cost most'
                found.append((line, why, lambda names=raised: dict(raised=names)))
        coarse = [n for n, s in plan.weights.items() if not s.format.per_channel]
        if coarse:
            why = f'{len(coarse)} weights have one scale for all channels'
            found.append((CHANNELS, why, lambda: dict(changed=self._channels(coarse))))
        narrow = [
            min((spec.format.bits for spec in specs), default=8)
            for specs in (plan.weights.values(), plan.activations)
        ]
        if tensors:
            line = f'bits=dict(weight={narrow[0]}, activation=16)'
            found.append((line, 'all activations', lambda: dict(raised=tensors)))
        if weights:
            line = f'bits=dict(weight=16, activation={narrow[1]})'
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
        # One for all images: it keeps the weights that it has put on their grids.
        behaviour = QuantizedSignals(self.state, {}, found, raised, self.ends, changed)
        behaviour.take_weights(self.signals)
        for image, reference, means in zip(self.images, self.references, self.means):
            behaviour.reference, behaviour.means = reference, means
            self._run(behaviour, image)
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


def costliest_blocks(
    layers: Sequence[LayerReport], share: float, most: int
) -> dict[str, str]:
    """The fewest blocks that make a share of the outputs' noise.

    Args:
        layers (Sequence[LayerReport]): All of them.
        share (float): From 0 to 1.
        most (int): Blocks at most.

    Returns:
        Dict[str, str]: What an override gives each of them, worst first.
    """
    parts: dict[str, list[float]] = {}
    for layer in layers:
        if layer.kind != 'input' and layer.module:
            noise = parts.setdefault(block_of(layer.module), [0.0, 0.0])
            noise[0] += layer.noise_of_weight or 0.0
            noise[1] += layer.noise_of_activation or 0.0
    whole, total = sum(map(sum, parts.values())), 0.0
    chosen: dict[str, str] = {}
    for block in sorted(parts, key=lambda block: -sum(parts[block]))[:most]:
        own = sum(parts[block])
        if total >= share * whole or not own:
            break
        chosen[block] = _kinds(*parts[block])
        total += own
    return chosen


def _kinds(weight: float, activation: float) -> str:
    """What is raised of a block with that noise of its weights and activations."""
    for kind, part in (('weight', weight), ('activation', activation)):
        if part >= ONE_KIND * (weight + activation):
            return f'dict({kind}=16)'
    return '16'


def members(layers: Sequence[LayerReport], widths: Mapping[str, str]) -> set[str]:
    """Weight and activation quantizers that an override raises."""
    found: set[str] = set()
    for layer in layers:
        module = layer.module
        # A pattern holds for what is within the module too.
        given = [w for name, w in widths.items() if f'{module}.'.startswith(f'{name}.')]
        if any('weight' not in width for width in given):
            found.add(layer.activation.name)
        if layer.weight is not None and any('activation' not in w for w in given):
            found.add(layer.weight.name)
    return found

"""Causes: why a layer stands out, from what was measured, and what helps.

Each rule looks at one layer; the first that holds is the cause. Its thresholds are in
factors of two, because a bit is one.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Union

from ..plan.plan import Plan
from ..record import ops
from ..targets.preset import FEW_BITS, FEW_BITS_OBSERVER
from .content import Finding, LayerReport, Report, Trial, is_weighed
from .measuring.trials import CHANNELS, block_of, overrides_line

MOST_FINDINGS = 12
# A layer stands out that makes this share of the outputs' noise, or, where that is not
# known, whose own noise is above this.
OUTSTANDING_SHARE = 0.02
OUTSTANDING_SNR = 25.0
CLIPPED = 0.005  # share of elements; a search clips less
SPREAD = 8.0  # three bits between a channel and the median one
TAIL = 32.0  # largest over root mean square: five bits for what hardly occurs
UNUSED_BITS = 1.5
# Of what a range reached half-way through the calibration, and share of the ranges.
GROWN, GROWN_SHARE = 1.1, 0.25
DRIFT = 6.0  # dB, a bit, between biases of calibration and of the measured images


def outstanding(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """Layers that need an explanation, worst first."""
    if is_weighed(layers):
        found = [x for x in layers if (x.share or 0.0) >= OUTSTANDING_SHARE]
        return sorted(found, key=lambda x: -x.share)[:MOST_FINDINGS]
    known = [x for x in layers if x.snr_own is not None]
    found = [x for x in known if x.snr_own < OUTSTANDING_SNR]
    return sorted(found, key=lambda x: x.snr_own)[:MOST_FINDINGS]


# Why, and what helps: a line of the config, or what an override gives blocks.
Remedy = Union[str, dict[str, str]]
Explained = tuple[str, Remedy]


class _Rules:
    """What may be wrong with a layer.

    Args:
        plan (Plan): Of the network.
        layers (Sequence[LayerReport]): All of them.
    """

    def __init__(self, plan: Plan, layers: Sequence[LayerReport]) -> None:
        self.plan = plan
        self.users = Counter(layer.activation.name for layer in layers)

    def of(self, layer: LayerReport) -> Iterator[Explained]:
        """Causes and remedies, the likeliest first."""
        weight, tensor = layer.noise_of_weight or 0.0, layer.noise_of_activation or 0.0
        first, second = self._weight_rules(), self._tensor_rules()
        for rule in first + second if weight > tensor else second + first:
            found = rule(layer)
            if found is not None:
                yield found
        yield self._rounding(layer)

    def _weight_rules(self) -> list[Callable]:
        return [self._spread_weight, self._bias, self._dead, self._coarse_weight]

    def _tensor_rules(self) -> list[Callable]:
        return [self._clipped, self._shared, self._half, self._spread, self._tail]

    def raised(self, layer: LayerReport, kind: str) -> dict[str, str]:
        """An override that gives a layer's block 16 bits."""
        return {block_of(layer.module) or '*': f'dict({kind}=16)'}

    def _spread_weight(self, layer: LayerReport) -> Explained | None:
        w = layer.weight
        if w is None or w.spread < SPREAD or 'per channel' in w.format:
            return None
        return (
            f'Outlier channels: its widest weight channel reaches {w.spread:.0f} times '
            f'as far as the median one, and all {w.channels} share a scale; the median '
            f'channel has {w.bits_used:.1f} of {w.bits} bits.',
            CHANNELS,
        )

    def _coarse_weight(self, layer: LayerReport) -> Explained | None:
        w = layer.weight
        if w is None or w.bits_used > w.bits - UNUSED_BITS:
            return None
        remedy: Remedy = self.raised(layer, 'weight')
        if 'per channel' not in w.format:
            remedy = CHANNELS
        return (
            f'Weights use {w.bits_used:.1f} of their {w.bits} bits in the median '
            'channel: the scale is that of the largest element.',
            remedy,
        )

    def _bias(self, layer: LayerReport) -> Explained | None:
        w = layer.weight
        if w is None or not w.bias_at_limit:
            return None
        if self.plan.config['constrain_bias'] == 'saturate':
            remedy: Remedy = "constrain_bias='reduce_weight_scale'"
        else:
            remedy = self.raised(layer, 'weight')
        return (
            f'Biases at their limit: {w.bias_at_limit:.0%} of the channels fill the '
            "bias's width, which cuts them off or makes the weight's grid coarser.",
            remedy,
        )

    def _dead(self, layer: LayerReport) -> Explained | None:
        w = layer.weight
        if w is None or not w.zero_channels:
            return None
        remedy: Remedy = CHANNELS
        if 'per channel' in w.format:
            remedy = self.raised(layer, 'weight')
        return (
            f'Dead channels: {w.zero_channels} of {w.channels} weight channels are '
            'all zero on their grid.',
            remedy,
        )

    def _clipped(self, layer: LayerReport) -> Explained | None:
        a = layer.activation
        if a.clipped < CLIPPED:
            return None
        return (
            f'Clipping: {a.clipped:.1%} of its elements are beyond the grid, which '
            f'holds {a.range[0]:.3g} to {a.range[1]:.3g}, of {a.seen[0]:.3g} to '
            f'{a.seen[1]:.3g}.',
            "observer='minmax'",
        )

    def _shared(self, layer: LayerReport) -> Explained | None:
        a = layer.activation
        shares = self.users[a.name] > 1 or layer.kind in (ops.CAT, ops.ADD)
        if not shares or a.bits_used > a.bits - UNUSED_BITS:
            return None
        return (
            f'A grid shared by unlike tensors: {self.users[a.name]} operations have '
            'their results on it, which reach unequally far; this one uses '
            f'{a.bits_used:.1f} of its {a.bits} bits.',
            self.raised(layer, 'activation'),
        )

    def _half(self, layer: LayerReport) -> Explained | None:
        a = layer.activation
        low, high = a.range
        unused = low < 0 and a.seen[0] > 0.25 * low and high >= -low * 0.9
        if not unused:
            return None
        return (
            f'Half a grid is thrown away: its {2**a.bits} steps are from {low:.3g} to '
            f'{high:.3g}, no number is below {a.seen[0]:.3g} (a smooth activation such '
            'as SiLU on a symmetric grid).',
            self.raised(layer, 'activation'),
        )

    def _spread(self, layer: LayerReport) -> Explained | None:
        a = layer.activation
        if a.spread < SPREAD:
            return None
        scaled = any(a.name == group.quantizer for group in self.plan.scaled)
        remedy: Remedy = self.raised(layer, 'activation')
        if not self.plan.scaled and not scaled:
            remedy = 'scale_channels=True'
        return (
            f'Channels of unlike reach: the widest reaches {a.spread:.0f} times as far '
            f'as the median one, on one grid of {a.bits} bits.',
            remedy,
        )

    def _tail(self, layer: LayerReport) -> Explained | None:
        a = layer.activation
        if a.tail < TAIL:
            return None
        # With 8 bits, what a narrower range cuts off are objects (docs/design.md); with
        # few nothing is left for what is small in a range that holds all.
        remedy: Remedy = self.raised(layer, 'activation')
        searches = self.plan.config['observer'] in ('mse', 'percentile')
        if a.bits <= FEW_BITS and not searches:
            remedy = f'observer={FEW_BITS_OBSERVER!r}'
        return (
            f'A long tail: the largest element is {a.tail:.0f} times the root mean '
            'square, and the grid reaches there.',
            remedy,
        )

    def _rounding(self, layer: LayerReport) -> Explained:
        a = layer.activation
        parts = [f'the {a.bits} bits of its output']
        if layer.weight is not None:
            parts.append(f'the {layer.weight.bits} bits of its weight')
        if (layer.noise_of_weight or 0.0) > (layer.noise_of_activation or 0.0):
            parts.reverse()
        return (
            f'Rounding: nothing stands out in its ranges; {parts[0]} are too few for '
            'what the outputs make of it.',
            {block_of(layer.module) or '*': '16'},
        )


def _line(remedy: Remedy) -> str:
    return overrides_line(remedy) if isinstance(remedy, dict) else remedy


def find_causes(
    plan: Plan, layers: Sequence[LayerReport], trials: Sequence[Trial]
) -> list[Finding]:
    """Explains the layers that stand out, worst first."""
    rules = _Rules(plan, layers)
    gains = {trial.line: trial.gain for trial in trials}
    found = []
    for layer in outstanding(layers):
        cause, remedy = next(rules.of(layer))
        line, gain = _line(remedy), gains.get(_line(remedy))
        if gain is not None and gain <= 0:
            # It was tried and does not help: what is left is more bits.
            weight = (layer.noise_of_weight or 0) > (layer.noise_of_activation or 0)
            cause += f' {line} was tried, and brings {gain:.1f} dB.'
            remedy = rules.raised(layer, 'weight' if weight else 'activation')
            line, gain = _line(remedy), gains.get(_line(remedy))
        finding = Finding(layer.name, layer.module, cause, line, gain)
        finding.widths = remedy if isinstance(remedy, dict) else {}
        found.append(finding)
    return found


def find_drift(report: Report, corrected: float) -> list[Finding]:
    """Whether the biases that calibration found fit the measured images.

    Args:
        report (Report): With its outputs.
        corrected (float): Median signal to noise of the outputs, in decibels, with
            biases that are corrected on the measured images themselves.
    """
    present = statistics.median(report.outputs.values())
    if corrected - present < DRIFT:
        return []
    return [
        Finding(
            '',
            'all layers',
            f'Drift: biases that calibration corrected fit the measured images badly. '
            f'With their own means, the outputs have {corrected:.1f} dB instead of '
            f'{present:.1f}: calibration saw too few images, or other ones.',
            'calibration=dict(num_images=1000)',
            corrected - present,
        )
    ]


def find_growth(growth: Sequence[float]) -> list[Finding]:
    """Whether ranges still moved when the calibration ended.

    Args:
        growth (Sequence[float]): How many times as far each range reaches as half-way;
            not finite where none was known then.
    """
    known = [value for value in growth if math.isfinite(value)]
    moved = sum(value > GROWN for value in known)
    if not known or moved < GROWN_SHARE * len(known):
        return []
    return [
        Finding(
            '',
            'all layers',
            'Ranges from too few images: over the second half of the calibration '
            f'{moved} of {len(known)} ranges still grew by more than a tenth. What '
            'other images have beyond them is cut off.',
            'calibration=dict(num_images=1000)',
        )
    ]


def next_line(trials: Sequence[Trial]) -> Trial | None:
    """The trial to follow: of those that bring nearly as much, what costs least.

    A scale for each channel costs no speed, a few wide blocks little, all of them much.
    """
    helping = [trial for trial in trials if trial.gain >= 1.0]
    if not helping:
        return None
    best = max(trial.gain for trial in helping)
    for trial in sorted(helping, key=_price):
        if trial.gain >= 0.4 * best:
            return trial
    return max(helping, key=lambda trial: trial.gain)


def _price(trial: Trial) -> int:
    kinds = (CHANNELS, 'overrides', 'bits')
    return next(i for i, kind in enumerate(kinds) if trial.line.startswith(kind))

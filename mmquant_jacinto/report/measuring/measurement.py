"""Measure: what a report says of layers, on a few images, within a time limit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...execute.behaviour import Behaviour
from ...execute.quantization import Quantization
from ...methods.selections import NotedSelections, imposed
from ...plan.network import output_quantizers
from ...plan.plan import Plan, module_of
from ...targets.formats import TensorFormat
from ..causes import find_causes, find_drift
from ..content import LayerReport, Report
from .gradients import GradientProbe, probe_gradients
from .signals import Differences, FloatSignals, Key, QuantizedSignals, decibels
from .trials import Trials
from .weight_statistics import weight_reports

Run = Callable[..., Any]  # runs the model once: takes a behaviour and a ``batch``
# Of the two passes that compare with float: a pass with gradients and one that
# weighs; a trial.
PROBE_COST, TRIAL_COST = 1.5, 0.6
# Of the time limit, by when further images are looked at, and weighed.
IMAGES_SHARE, WEIGHED_SHARE = 0.4, 0.8


class Stopwatch:
    """Time since it was made, against a limit.

    Args:
        limit (float, optional): Seconds. None: as long as it takes.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def allows(self, seconds: float, share: float = 1.0) -> bool:
        """Whether so many more are within that share of the limit."""
        return self.limit is None or self.seconds + seconds <= share * self.limit


def describe(quantization: Quantization, title: str, kind: str) -> Report:
    """A report of what is known without running anything."""
    plan = quantization.plan
    elements = [
        (layer.weight.numel(), layer.spec.format.bits)
        for layer in quantization.layers.values()
    ]
    every = sum(parameter.numel() for parameter in quantization.root.parameters())
    weights = sum(count for count, _ in elements)
    return Report(
        title=title,
        kind=kind,
        settings=dict(plan.config),
        quantized=dict(
            weights=_widths([spec.format for spec in plan.weights.values()]),
            activations=_widths([spec.format for spec in plan.activations]),
        ),
        in_float=dict(plan.in_float),
        size=dict(
            float=4e-6 * every,
            quantized=1e-6 * (sum(count * bits for count, bits in elements) / 8)
            + 4e-6 * max(0, every - weights),
        ),
    )


def _widths(formats: Sequence[TensorFormat]) -> dict[str, int]:
    counted = Counter(fmt.bits for fmt in formats)
    return {str(bits): counted[bits] for bits in sorted(counted, reverse=True)}


class Measurement:
    """Measures a quantized model for a report.

    Nothing is changed but the behaviour, which :meth:`fill` puts back; no other
    process is waited for.

    Args:
        quantization (Quantization): With ranges, its model in evaluation mode.
        run (Callable): Runs the model once, given a behaviour and a batch.
        limit (float, optional): Seconds that it may take. None: any.
        first (float): Seconds that an image is expected to take; nothing is measured
            if that is too much. 0: one always is.
    """

    def __init__(
        self,
        quantization: Quantization,
        run: Run,
        limit: float | None = None,
        first: float = 0.0,
    ) -> None:
        self.state = quantization
        self.run = run
        self.watch = Stopwatch(limit)
        self.first = first
        self.skipped: list[str] = []

    def fill(self, report: Report, batches: Collection[Any]) -> None:
        """Fills in layers, outputs, trials and findings.

        Args:
            report (Report): Of :func:`describe`.
            batches (Collection): Of one image each, as the dataloader collates them.
        """
        if self.first and not self.watch.allows(self.first):
            report.skipped.append('all that is measured of layers')
            return
        try:
            self._fill(report, batches)
        finally:
            # What the former phase computed may be of other grids.
            self.state.set_phase(self.state.phase)
        report.seconds += self.watch.seconds
        report.skipped += self.skipped

    def _fill(self, report: Report, batches: Collection[Any]) -> None:
        ends = output_steps(self.state.plan)
        signals = FloatSignals(self.state)
        own, total = Differences(), Differences()
        quantized = QuantizedSignals(self.state, {}, total)
        quantized.take_weights(signals)
        references: list[dict[Key, Tensor]] = []
        means: list[dict[Key, Tensor]] = []
        images: list[tuple[Any, list[Tensor]]] = []
        each = 0.0
        for batch in batches:
            if references and not self.watch.allows(each, IMAGES_SHARE):
                self.skipped.append(
                    f'{len(batches) - len(references)} of {len(batches)} images'
                )
                break
            start = self.watch.seconds
            images.append((batch, self._compare(signals, quantized, own, batch)))
            references.append(
                {key: x for key, x in signals.reference.items() if key[0] in ends}
            )
            means.append(signals.means)
            each = self.watch.seconds - start
        report.images = len(images)
        self._weigh(signals, [batch for batch, _ in images], each)
        weights = weight_reports(self.state, signals.grids)
        report.layers = self._layers(signals, own, total, weights, ends)
        report.outputs = {
            layer.name: layer.snr_total
            for layer in report.layers
            if layer.is_output and layer.snr_total is not None
        }
        trials = Trials(signals, self._run_on, images, references, means, ends)
        afford = self._afford(each)
        if report.outputs:
            report.trials, left = trials.run(report.layers, afford)
            self.skipped += left
        report.findings = find_causes(self.state.plan, report.layers, report.trials)
        if report.trials:
            report.findings += find_drift(report, trials.before)
            trials.try_findings(report.layers, report.findings, afford)

    @torch.no_grad()
    def _compare(
        self,
        signals: FloatSignals,
        quantized: QuantizedSignals,
        own: Differences,
        batch: Any,
    ) -> list[Tensor]:
        """A pass in float, and a quantized one; what the former has selected."""
        with NotedSelections() as noted:
            self.run(signals, batch)
        for key, x in signals.own.items():
            own.add(key[0], signals.reference[key], x)
        quantized.reference = signals.reference
        self._run_on(quantized, (batch, noted.all))
        return noted.all

    def _run_on(self, behaviour: Behaviour, image: tuple[Any, list[Tensor]]) -> None:
        """A pass on a batch that selects what the one in float has."""
        batch, selections = image
        with imposed(selections):
            self.run(behaviour, batch)

    def _afford(self, each: float) -> Callable[[int], bool]:
        return lambda passes: self.watch.allows(TRIAL_COST * each * passes)

    def _weigh(
        self, signals: FloatSignals, batches: Sequence[Any], each: float
    ) -> None:
        """Weighs errors with what the outputs feel of them, as far as time goes."""
        probe = GradientProbe(self.state)
        for seed, batch in enumerate(batches):
            if not self.watch.allows(PROBE_COST * each, WEIGHED_SHARE):
                if not seed:
                    self.skipped.append('what each layer puts into the outputs')
                break
            run = partial(self.run, batch=batch)
            signals.gradients = probe_gradients(probe, run, seed)
            with torch.no_grad():
                self.run(signals, batch)

    def _layers(
        self,
        signals: FloatSignals,
        own: Differences,
        total: Differences,
        weights: dict[str, Any],
        ends: set[str],
    ) -> list[LayerReport]:
        plan = self.state.plan
        noise = read_rows(signals.noise)
        totals, owns = total.ratios(), own.ratios()
        layers = []
        for name, activation in signals.statistics.reports().items():
            step = plan.steps.get(name)
            signal, all_noise = totals.get(name, (0.0, 0.0))
            _, own_noise = owns.get(name, (0.0, 0.0))
            weight = step.weight if step is not None else None
            by_weight, by_grid = noise.get(name, (None, None))
            layers.append(
                LayerReport(
                    name=name,
                    module=module_of(name),
                    kind='input' if step is None else step.kind,
                    snr_total=decibels(signal, all_noise),
                    snr_own=decibels(*owns.get(name, (0.0, 0.0))),
                    snr_inherited=decibels(signal, max(all_noise - own_noise, 0.0)),
                    noise_of_weight=by_weight if weight else None,
                    noise_of_activation=by_grid,
                    share=None,
                    is_output=name in ends,
                    weight=weights.get(weight),
                    activation=activation,
                )
            )
        share_noise(layers)
        return layers


def read_rows(rows: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Equally long tensors as numbers, all in one go."""
    if not rows:
        return {}
    return dict(zip(rows, torch.stack(list(rows.values())).tolist()))


def share_noise(layers: Sequence[LayerReport]) -> None:
    """Gives each layer its part of what all put into the outputs."""
    parts = [
        (layer.noise_of_weight or 0.0) + (layer.noise_of_activation or 0.0)
        for layer in layers
    ]
    whole = sum(parts)
    if whole > 0:
        for layer, part in zip(layers, parts):
            layer.share = part / whole


def output_steps(plan: Plan) -> set[str]:
    """Call sites, by the head of their chain, of what leaves the network."""
    names = output_quantizers(plan)
    return {
        step.chain for step in plan.steps.values() if step.last and step.output in names
    }

"""Content of a report as data: what ``report.json`` has, and the page shows.

The dataclasses are the schema: names, types and what they mean. A ratio of signal to
noise is in decibels, None where there was nothing to compare. Shares are from 0 to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from typing import Any

VERSION = 1


@dataclass
class Histogram:
    """Elements by value, in bins of equal width.

    Args:
        low (float): Lower edge of the first bin.
        high (float): Upper edge of the last one.
        float_counts (List[int]): In float, of a sample.
        quantized_counts (List[int]): The same elements on their grid.
    """

    low: float
    high: float
    float_counts: list[int]
    quantized_counts: list[int]


@dataclass
class WeightReport:
    """A weight quantizer, and what was measured of it.

    Args:
        name (str): In the plan.
        bits (int): Width.
        format (str): ``'symmetric, per channel, power of two'`` and the like.
        elements (int): Of the weight.
        channels (int): Output channels.
        scale (List[float]): Smallest and largest scale of a channel.
        range (List[float]): Smallest and largest element of the folded weight.
        clipped (float): Share of elements beyond the grid.
        bits_used (float): Bits that the largest integer of the median channel takes,
            its sign included.
        zero_channels (int): Channels in which all integers are zero.
        spread (float): Largest reach of a channel over the median channel's.
        bias_at_limit (float): Share of biases at the end of their width, or that
            made the grid coarser.
        channel_range (List[List[float]]): Smallest and largest element of each
            channel; of neighbours together where there are many.
        histogram (Histogram): Of a sample of the folded weight.
    """

    name: str
    bits: int
    format: str
    elements: int
    channels: int
    scale: list[float]
    range: list[float]
    clipped: float
    bits_used: float
    zero_channels: int
    spread: float
    bias_at_limit: float
    channel_range: list[list[float]]
    histogram: Histogram


@dataclass
class ActivationReport:
    """What an operation gives, and the grid that it is put on.

    Args:
        name (str): The quantizer, in the plan; several tensors may share one.
        bits (int): Width.
        format (str): As of a weight.
        scale (float): Step of the grid.
        range (List[float]): Lowest and highest number of the grid.
        seen (List[float]): Smallest and largest element that was measured.
        clipped (float): Share of elements beyond the grid.
        bits_used (float): Bits that the integers between the measured ends take.
        zero_channels (int): Channels that were zero everywhere.
        channels (int): Channels.
        tail (float): Largest element over the root of the mean square.
        spread (float): Largest reach of a channel over the median channel's.
        histogram (Histogram): Of a sample.
    """

    name: str
    bits: int
    format: str
    scale: float
    range: list[float]
    seen: list[float]
    clipped: float
    bits_used: float
    zero_channels: int
    channels: int
    tail: float
    spread: float
    histogram: Histogram


@dataclass
class LayerReport:
    """An operation of the quantized network: a layer with what is fused into it.

    Args:
        name (str): Call site, in the plan.
        module (str): Module that makes the call; what ``quantize.overrides`` names.
        kind (str): Of the operation.
        snr_total (float, optional): Its output in the quantized network against the
            float network, in decibels.
        snr_own (float, optional): The same where it alone is quantized, and its
            inputs are those of the float network.
        snr_inherited (float, optional): The part of the total that is not its own.
        noise_of_weight (float, optional): Noise to signal that rounding its weight
            puts into the network's outputs, to first order.
        noise_of_activation (float, optional): The same of its output's grid.
        share (float, optional): Its part of what all layers put into the outputs.
        is_output (bool): Whether the network's outputs are its.
        weight (WeightReport, optional): None where it has none.
        activation (ActivationReport): Of its output.
    """

    name: str
    module: str
    kind: str
    snr_total: float | None
    snr_own: float | None
    snr_inherited: float | None
    noise_of_weight: float | None
    noise_of_activation: float | None
    share: float | None
    is_output: bool
    weight: WeightReport | None
    activation: ActivationReport


@dataclass
class Trial:
    """Another setting, tried on the measured images.

    Args:
        line (str): Of the config.
        why (str): What it is against.
        snr_before (float): Median ratio of the network's outputs, in decibels.
        snr_after (float): With it.
    """

    line: str
    why: str
    snr_before: float
    snr_after: float

    @property
    def gain(self) -> float:
        """float: Decibels that it brings."""
        return self.snr_after - self.snr_before


@dataclass
class Finding:
    """What stands out in a layer, why, and what helps.

    Args:
        layer (str): Name of the :class:`LayerReport`.
        module (str): Its module.
        cause (str): A sentence with what was measured.
        remedy (str): A line for the config.
        tried (float, optional): Decibels that the remedy brings at the outputs, where
            it was tried.
        widths (Dict[str, str]): Of a remedy that is an override: what it gives blocks.
    """

    layer: str
    module: str
    cause: str
    remedy: str
    tried: float | None = None
    widths: dict[str, str] = field(default_factory=dict)


@dataclass
class Score:
    """A metric of one of the networks, with its interval.

    Args:
        network (str): ``'float'``, ``'quantized'`` or ``'file'``.
        metric (str): Its name.
        value (float): In the unit that its evaluator gives.
        low (float, optional): Lower end of the 95 % interval, by the bootstrap over
            images; None where there is only the evaluator's number.
        high (float, optional): Upper end.
        images (int, optional): That were scored.
        lost (List[float], optional): 95 % interval of the points that float, on the
            same images, is better by; None of float itself, and where there is only
            the evaluator's number.
    """

    network: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    images: int | None = None
    lost: list[float] | None = None


@dataclass
class FileReport:
    """An exported file.

    Args:
        path (str): Where it is.
        target (str): What it is for.
        bytes (int): Size.
        outputs (List[Dict]): Of each output: ``name``, ``elements``, ``equal``
            (share) and ``largest`` difference.
        violations (List[str]): Nodes that break a rule of the target, with the rule.
        slowest (List[Dict]): ``engine``, ``node``, ``kind`` and ``milliseconds`` in it.
    """

    path: str
    target: str
    bytes: int
    outputs: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    slowest: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Report:
    """Everything that a page shows.

    Args:
        title (str): Of the run.
        kind (str): ``'calibration'``, ``'test'``, ``'training'``, ``'export'`` or
            ``'report'`` (of the tool).
        settings (Dict): The numeric settings of the plan.
        quantized (Dict): ``weights``, ``activations``: how many of how many bits.
        in_float (Dict[str, str]): What stays in float, with the reason.
        size (Dict[str, float]): Megabytes of weights ``float`` and ``quantized``.
        images (int): That layers were measured on.
        layers (List[LayerReport]): In the order in which they run.
        outputs (Dict[str, float]): Signal to noise of each output, by call site.
        findings (List[Finding]): Worst first.
        trials (List[Trial]): Best first.
        scores (List[Score]): What is known.
        skipped (List[str]): What was left out to keep the run short.
        seconds (float): That measuring took.
        curves (Dict): Of a training: ``scalars`` (name to list of step and value)
            and ``frozen`` (list of texts).
        file (FileReport, optional): Of an export.
        pictures (Dict): ``threshold``, ``images``, ``networks`` (from left to right),
            and ``lost``, ``gained``, ``kept`` (counts of detections that match the
            truth) where float and quantized network are among them.
        budget (Dict): Of a calibration with ``max_drop``, or within a latency: what
            its ``max_drop.json`` or ``mixed_precision.json`` has, but for the rankings.
    """

    title: str
    kind: str
    settings: dict[str, Any]
    quantized: dict[str, dict[str, int]]
    in_float: dict[str, str]
    size: dict[str, float]
    images: int = 0
    layers: list[LayerReport] = field(default_factory=list)
    outputs: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    curves: dict[str, Any] = field(default_factory=dict)
    file: FileReport | None = None
    pictures: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)

    def costliest(self, count: int = 3) -> list[LayerReport]:
        """The layers that cost most: by their share, else by their own noise."""
        if is_weighed(self.layers):
            return sorted(self.layers, key=lambda layer: -(layer.share or 0.0))[:count]
        known = [layer for layer in self.layers if layer.snr_own is not None]
        return sorted(known, key=lambda layer: layer.snr_own)[:count]

    def to_data(self) -> dict[str, Any]:
        """What ``report.json`` has; numbers that are not finite are None."""
        return plain({'version': VERSION, **vars(self)})

    def to_json(self) -> str:
        """Serializes it."""
        return as_json(self.to_data())

    def scalars(self) -> dict[str, float]:
        """What a visualizer draws.

        No name ends in that of a metric: MMDetection's ``analyze_logs`` takes what is
        behind the last slash for a validation's.
        """
        found = {
            f'report/output_snr/{name}': value for name, value in self.outputs.items()
        }
        for score in self.scores:
            found[f'report/{score.metric}/{score.network}'] = score.value
        return {name: value for name, value in found.items() if math.isfinite(value)}


def is_weighed(layers: Iterable[LayerReport]) -> bool:
    """Whether it was measured what each layer puts into the outputs.

    Without that, the layer with the largest error may be one that they hardly feel.
    """
    return any(layer.share is not None for layer in layers)


def as_json(data: Any) -> str:
    """Plain data as short text."""
    return json.dumps(data, separators=(',', ':'), allow_nan=False)


def plain(value: Any) -> Any:
    """Dataclasses and numbers, to five digits, as JSON takes them, in any nesting."""
    if isinstance(value, float):
        return float(f'{value:.5g}') if math.isfinite(value) else None
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # Most are counts of histograms.
        return [item if type(item) is int else plain(item) for item in value]
    return value

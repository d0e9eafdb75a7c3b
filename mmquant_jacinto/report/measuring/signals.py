"""Signals: how far the quantized network is from the float one, step by step.

Both see the same image. The first pass runs in float, and at each step also computes
what the step would give if it alone were quantized: its own noise. The second is the
quantized network: all noise. What is compared is a sample of each tensor, kept on its
device and read once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Callable

import torch
from torch import Tensor

from ...execute.calibrate import channel_axis, channel_moments
from ...execute.fake_quantize import Simulate
from ...execute.state import State
from ...plan.plan import Step
from ...quantizers.computed_weights import quantize_computed_weight
from ...quantizers.layers import Layer
from ...record import ops
from ...record.ops import Op
from .activation_statistics import ActivationStatistics

SAMPLE = 2**15  # elements of a tensor
LEAST_POSITIONS = 64  # elements of a channel that have a mean worth correcting

# Call site of a step's head, or the quantizer of what enters; and the how-manieth run.
Key = tuple[str, int]


def sample(x: Tensor) -> Tensor:
    """At most about :data:`SAMPLE` elements of a tensor, evenly spread: (n,)."""
    # An odd stride shares no factor with widths, which are mostly even.
    stride = -(-x.numel() // SAMPLE) | 1 if x.numel() > SAMPLE else 1
    return x.detach().reshape(-1)[::stride].float().clone()


class _Still(Simulate):
    """Fake quantization that changes neither ranges nor statistics."""

    observes = False

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._runs: dict[str, int] = {}
        self._shares = False

    def take_weights(self, other: Simulate) -> None:
        """Has the weights on their grids in common with another of the same state."""
        self.grids, self._kept, self._shares = other.grids, other._kept, True

    def begin(self) -> None:
        # Nothing changes weights between the passes of a report.
        if not self._shares:
            super().begin()
        self._runs = {}

    def end(self) -> None:
        """Ranges stay as measured; nothing is shared with other processes."""

    def visible(self, quantizer: str, x: Tensor) -> Tensor:
        """A tensor within the ends beyond which all that reads it is flat."""
        ends = self.activations.specs[self.activations.index[quantizer]].ends
        return x if ends is None else x.clamp(*ends)

    def key(self, name: str) -> Key:
        """Numbers the runs of a step in a pass."""
        count = self._runs.get(name, 0)
        self._runs[name] = count + 1
        return name, count


class FloatSignals(_Still):
    """Runs in float; measures the tensors, and each step's own noise.

    Where calibration corrected the biases, a layer's own output has the mean of the
    float one: what the correction makes up for upstream is not its own.

    Args:
        state (State): Of the quantized model.

    Attributes:
        reference (Dict[Key, Tensor]): Samples of the last pass.
        own (Dict[Key, Tensor]): The same, as each step alone would have them.
        means (Dict[Key, Tensor]): Of the last pass: mean output of each channel, by
            run of a weight quantizer.
        gradients (Dict[Key, Tensor]): For the next pass, samples of what the outputs
            feel of each tensor. Then errors are weighed with them.
        noise (Dict[str, Tensor]): What has been weighed so far, by step: noise to
            signal in the outputs by its weight and by its grid, (2,).
        statistics (ActivationStatistics): Of all passes.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.reference: dict[Key, Tensor] = {}
        self.own: dict[Key, Tensor] = {}
        self.means: dict[Key, Tensor] = {}
        self.gradients: Mapping[Key, Tensor] = {}
        self.noise: dict[str, Tensor] = {}
        self.statistics = ActivationStatistics(state.activations)
        self.corrects = bool(state.bias_correction.any())
        self._pending: dict[str, list[Tensor]] = {}

    def begin(self) -> None:
        super().begin()
        self.reference, self.own, self.means, self._pending = {}, {}, {}, {}

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        self._compare(quantizer, quantizer, x, [x], None)
        return x

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.weight is not None and step.kind in ops.WEIGHTED:
            if not self.state.layers[step.weight].norm_is_live:
                self._pending[step.chain] = self._alone(step, func, args, kwargs)
        elif step.weight_format is not None and step.norm is None:
            own = quantize_computed_weight(step, args, kwargs)
            self._pending[step.chain] = [func(*own[0], **own[1])]
        out = func(*args, **kwargs)
        if step.weight is not None and step.kind in ops.WEIGHTED and not step.norm:
            self._note_mean(step, out, channel_axis(self._layer(step), step))
        return out if step.kind in (ops.PASS, ops.CAT) else self._finish(step, out)

    def _alone(
        self, step: Step, func: Callable, args: tuple, kwargs: dict
    ) -> list[Tensor]:
        """What a layer gives with its weight on the grid, or on several grids."""
        args, kwargs = self.quantize_layer(step, args, kwargs)
        return [func(*args, **kwargs)]

    def folds(self, step: Step, norm: Any) -> bool:
        return False

    def after_norm(self, step: Step, x: Any) -> Any:
        if step.weight is not None:
            self._note_mean(step, x, 1)
        return self._finish(step, x)

    def _layer(self, step: Step) -> Layer:
        return self.state.layers[step.weight]

    def _note_mean(self, step: Step, x: Tensor, axis: int) -> None:
        mean = channel_moments(x, axis, False)[0]
        self.means[self.key(_means_of(step))] = mean
        if not self.corrects:
            return
        axis = channel_axis(self._layer(step), step)
        for own in self._pending.get(step.chain, ()):
            move_mean(own, mean, axis)

    def _finish(self, step: Step, x: Any) -> Any:
        if step.last and step.output is not None and isinstance(x, Tensor):
            own = self._pending.pop(step.chain, [x])
            self._compare(step.chain, step.output, x, own, step.clip)
        elif step.last and step.chain in self._pending and isinstance(x, Tensor):
            self._weigh_open(step.chain, x, self._pending.pop(step.chain))
        return x

    def _weigh_open(self, name: str, x: Tensor, own: list[Tensor]) -> None:
        """Weighs the errors of a layer's weight whose result is on no grid."""
        gradient, reference = self.gradients.get(self.key(name)), sample(x)
        if gradient is not None and gradient.shape == reference.shape:
            errors = [sample(item) for item in own]
            self._weigh(
                name, x, reference, gradient, [*errors, *[reference] * len(own)]
            )

    def _weigh(
        self,
        name: str,
        x: Tensor,
        reference: Tensor,
        gradient: Tensor,
        errors: list[Tensor],
    ) -> None:
        # Of all elements, as the sample's.
        weight = gradient.square() * (x.numel() / reference.numel())
        noise = torch.stack(
            [((error - reference).square() * weight).sum() for error in errors]
        ).double()
        known = self.noise.get(name)
        self.noise[name] = noise if known is None else known + noise

    def _compare(
        self, name: str, quantizer: str, x: Tensor, own: list[Tensor], clip: Any
    ) -> None:
        if not x.numel() or not x.is_floating_point():
            return
        key = self.key(name)
        reference = sample(self.visible(quantizer, x))
        self.reference[key] = reference
        self.own[key] = quantized = self._on_grid_of(quantizer, own[0], clip)
        gradient = self.gradients.get(key)
        if not self.gradients:
            # A pass that weighs sees an image for the second time.
            self.statistics.add(name, quantizer, x, reference, quantized)
        if gradient is None or gradient.shape != reference.shape:
            return
        errors = self._errors(quantizer, x, own, clip)
        self._weigh(name, x, reference, gradient, errors)

    def _errors(
        self, quantizer: str, x: Tensor, own: list[Tensor], clip: Any
    ) -> list[Tensor]:
        """The tensor with the errors of weights, then of grids; samples of them."""
        clamped = [item if clip is None else item.clamp(*clip) for item in own]
        weights = [sample(self.visible(quantizer, item)) for item in clamped]
        return [*weights, self._on_grid_of(quantizer, x, clip)]

    def _on_grid_of(self, quantizer: str, x: Tensor, clip: Any) -> Tensor:
        """A sample of a tensor on the grid of a quantizer."""
        x = self.visible(quantizer, x)
        # Each element for itself, unless channels have factors.
        if self.activations.factor(quantizer) is None:
            return self._quantize(quantizer, sample(x), clip, in_place=True)
        return self.visible(quantizer, sample(self._quantize(quantizer, x, clip)))


def _means_of(step: Step) -> str:
    return f'{step.weight}, mean'


def move_mean(x: Tensor, mean: Tensor, axis: int) -> None:
    """Moves a layer's output to given means of its channels, in place.

    Not where there are too few elements in a channel: their mean would be themselves.

    Args:
        x (Tensor): The output.
        mean (Tensor): (C,).
        axis (int): Of the channels, from the end.
    """
    if x.numel() < LEAST_POSITIONS * mean.numel():
        return
    move = mean - channel_moments(x, axis, False)[0]
    move = move.nan_to_num_(0.0, 0.0, 0.0).to(x.dtype)
    x.add_(move.view(-1, *(1,) * (-1 - axis)))


def decibels(signal: float, noise: float) -> float | None:
    """Ratio of two energies; None where there is none."""
    if not signal > 0 or not math.isfinite(signal + noise):
        return None
    # Equal to the last bit: as far as float32 tells.
    return 10 * math.log10(signal / max(noise, signal * 1e-14))


class Differences:
    """Sums of squares of signals and of differences to them, by step.

    On the device until :meth:`ratios` reads all of them at once.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, reference: Tensor, x: Tensor) -> None:
        """Notes one run of a step; what has another size cannot be compared."""
        if reference.shape != x.shape:
            return
        noise = x - reference
        pair = torch.stack([reference.dot(reference), noise.dot(noise)]).double()
        known = self._sums.get(name)
        self._sums[name] = pair if known is None else known + pair

    def ratios(self) -> dict[str, tuple[float, float]]:
        """Energy of signal and noise, by step."""
        if not self._sums:
            return {}
        rows = torch.stack(list(self._sums.values())).tolist()
        return {name: (row[0], row[1]) for name, row in zip(self._sums, rows)}


class QuantizedSignals(_Still):
    """Runs the quantized network, and compares it with a float pass on the same image.

    Args:
        state (State): Of the quantized model.
        reference (Mapping[Key, Tensor]): Of that pass.
        differences (Differences): Where the sums go.
        raised (Collection[str]): Weight quantizers and activation quantizers that run
            in float, to see what they cost.
        only (Collection[str], optional): Names of the steps to compare; None: all.
        changed (Mapping[str, tuple], optional): Weight and bias of layers that have
            others, by weight quantizer.
        means (Mapping[Key, Tensor], optional): What each layer's output is moved to,
            as by a correction of the biases anew.
    """

    def __init__(
        self,
        state: State,
        reference: Mapping[Key, Tensor],
        differences: Differences,
        raised: Collection[str] = (),
        only: Collection[str] | None = None,
        changed: Mapping[str, tuple[Tensor, Tensor]] | None = None,
        means: Mapping[Key, Tensor] | None = None,
    ) -> None:
        super().__init__(state)
        self.reference = reference
        self.differences = differences
        self.raised = frozenset(raised)
        self.only = only
        self.changed = changed or {}
        self.means = means or {}

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        x = super().input(quantizer, x)
        self._note(quantizer, quantizer, x)
        return x

    def _emit(self, step: Step, x: Any) -> Any:
        x = super()._emit(step, x)
        if isinstance(x, Tensor) and step.output is not None:
            self._note(step.chain, step.output, x)
        return x

    def after_layer(self, step: Step, x: Tensor) -> None:
        # A layer that runs several times has one bias, here one for each run.
        mean = self.means.get(self.key(_means_of(step)))
        if mean is not None:
            move_mean(x, mean, channel_axis(self.state.layers[step.weight], step))

    def _note(self, name: str, quantizer: str, x: Tensor) -> None:
        if not x.numel() or not x.is_floating_point():
            return
        key = self.key(name)
        if (self.only is None or name in self.only) and key in self.reference:
            x = self.visible(quantizer, sample(x))
            self.differences.add(name, self.reference[key], x)

    def _quantize(
        self, quantizer: str, x: Tensor, clip: Any, in_place: bool = False
    ) -> Tensor:
        if quantizer not in self.raised:
            return super()._quantize(quantizer, x, clip, in_place)
        return x if clip is None else x.clamp(*clip)

    def _folded(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        if name in self.raised:
            weight, bias = layer.folded()
            correction = self.state.correction(name)
            return weight, correction if bias is None else bias + correction
        return self.changed.get(name) or super()._folded(name, layer)

"""Calibrate: ranges from a float pass, then biases and weights from quantized ones.

The corrections are those of the Jacinto devkit: per batch, each layer's
mean output per channel in float and in quantized form are compared, and
``bias += lr * (float - quantized)``, with lr = 0.05 halved each epoch. Both
passes see the same batch. So are the standard deviations, if weights are to be
corrected too: ``weight *= (float / quantized) ** lr``. The quantized mean is then the
one behind the weight that standard deviations ask for, which the devkit leaves to the
next batch. Both are state of the quantizers; the model's own biases and weights stay as
they are.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..plan.plan import Step, count_calls
from ..quantizers.kernels import native
from ..quantizers.layers import Layer
from ..quantizers.observers import is_distributed
from ..record import ops
from ..record.ops import Op
from .behaviour import Behaviour
from .corrections.analytic_correction import mean_inputs
from .corrections.conditioning import condition_once
from .corrections.weight_correction import corrected_weights
from .fake_quantize import Simulate
from .state import State

# Standard deviations further apart than this, either way, count as this far: a batch
# in which a channel is all but constant says little.
MAX_RATIO = 2.0
# Variances below this share of the mean square are what rounding leaves of none.
SMALLEST_VARIANCE = 1e-10


def robust_mean(x: Tensor, dims: list[int]) -> Tensor:
    """Mean of what is not far off, by two steps of Huber's estimator.

    The few elements that reach far are those of objects, and of edges. They are wrong
    by another amount than the rest, and a bias that follows them moves everything:
    scores of detectors sink. See Huber, Robust Estimation of a Location Parameter
    (Annals of Mathematical Statistics 35, 1964).

    Args:
        x (Tensor): Floating point, of any shape.
        dims (List[int]): What to take it over.

    Returns:
        Tensor: ``x`` without these dimensions.
    """
    if len(dims) == x.dim() - 1 and native.takes(x):
        (axis,) = set(range(x.dim())) - set(dims)
        return native.robust_mean(x, axis)
    mean = x.mean(dims, keepdim=True)
    for _ in range(2):
        reach = (x - mean).abs_().mean(dims, keepdim=True)
        near = torch.minimum(torch.maximum(x, mean - reach), mean + reach)
        mean = near.mean(dims, keepdim=True)
    return mean.squeeze(tuple(dims))


def channel_moments(
    x: Tensor, axis: int, squares: bool, robust: bool = False
) -> Tensor:
    """Moments of a layer's output over all but its channels.

    Args:
        x (Tensor): The output.
        axis (int): Of its channels.
        squares (bool): Whether what standard deviations follow from is wanted too.
        robust (bool): Whether the means are to be robust.

    Returns:
        Tensor: (1, C), the means, float32; or (3, C), float64: these, the plain means,
        and those of the squares.
    """
    x, axis = x.detach().float(), axis % x.dim()
    dims = [d for d in range(x.dim()) if d != axis]
    if not dims:
        return torch.stack([x, x, x.square()]).double() if squares else x[None]
    if not squares:
        return (robust_mean(x, dims) if robust else x.mean(dims))[None]
    # Through the variance: of a large mean the squares alone would lose it.
    if robust and native.takes(x):
        center, mean, variance = native.robust_mean(x, axis, squares=True).double()
    else:
        variance, mean = torch.var_mean(x, dims, correction=0)
        center = robust_mean(x, dims) if robust else mean
        center, variance, mean = center.double(), variance.double(), mean.double()
    return torch.stack([center, mean, variance + mean.square()])


def deviation_ratios(moments: Tensor) -> Tensor:
    """Standard deviations in float over quantized ones.

    Args:
        moments (Tensor): In float and quantized, as of :func:`channel_moments`: (2, 3,
            C).

    Returns:
        Tensor: (C,), float32; 1 where either does not vary, or is not finite.
    """
    _, means, squares = moments.unbind(1)
    variances = squares - means.square()
    varies = (variances > SMALLEST_VARIANCE * squares).all(0)
    ratios = (variances[0] / variances[1]).sqrt_()
    ratios = torch.where(varies & ratios.isfinite(), ratios, 1.0).float()
    return ratios.clamp_(1 / MAX_RATIO, MAX_RATIO)


def channel_axis(layer: Layer, step: Step) -> int:
    """Axis of the channels in a layer's output, from its end."""
    return -1 if step.kind == ops.LINEAR else 1 - layer.weight.dim()


class LayerMeans:
    """Collects the same kind of means of each quantized layer.

    A layer that runs more than once in a pass counts with the mean of its
    runs.
    """

    def __init__(self) -> None:
        self._runs: dict[str, list[Tensor]] = {}

    def add(self, name: str, mean: Tensor) -> None:
        """Notes one run of the layer ``name``."""
        self._runs.setdefault(name, []).append(mean)

    def take(self) -> dict[str, Tensor]:
        """Means by layer, since last taken."""
        runs, self._runs = self._runs, {}
        return {
            name: means[0] if len(means) == 1 else torch.stack(means).mean(0)
            for name, means in runs.items()
        }


class Observe(Behaviour):
    """Runs in float; measures ranges, and what the layers' corrections need.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.outputs = LayerMeans()
        self.inputs = LayerMeans()
        self._corrected: frozenset[str] | None = None

    def begin(self) -> None:
        condition_once(self.state)
        if self._corrected is None:
            self._corrected = corrected_weights(self.state)

    def end(self) -> None:
        self.state.activations.commit()

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        self.state.activations.observe(quantizer, x)
        return x

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.kind == ops.CAT and step.output is not None:
            tensors = ops.tensor_inputs(op, args, kwargs)
            self.state.uneven.add(step.chain, tensors)
            for name, x in zip(step.inputs, tensors):
                if name is None:
                    self.state.activations.observe(step.output, x)
        out = func(*args, **kwargs)
        if step.kind in ops.WEIGHTED and step.weight is not None:
            layer = self.state.layers[step.weight]
            # Where a deformable convolution reads depends on the image.
            if self.state.calibration.is_analytic and step.kind != ops.DEFORM_CONV:
                inputs = mean_inputs(layer, step, func, args, kwargs)
                self.inputs.add(step.weight, inputs)
            if step.norm is None:
                self._measure(step.weight, out, channel_axis(layer, step))
        if step.kind not in (ops.PASS, ops.CAT):
            self._observe(step, out)
        return out

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        if step.weight is not None:
            self._measure(step.weight, x, 1)
        self._observe(step, x)
        return x

    def _measure(self, name: str, x: Tensor, axis: int) -> None:
        calibration = self.state.calibration
        if calibration.passes:
            moments = channel_moments(
                x, axis, name in (self._corrected or ()), calibration.is_robust
            )
            self.outputs.add(name, moments)

    def _observe(self, step: Step, x: Any) -> None:
        if step.last and step.output is not None and isinstance(x, Tensor):
            self.state.activations.observe(step.output, x)


class Correct(Simulate):
    """Runs fake-quantized; :meth:`update` corrects biases and weights afterwards.

    Args:
        state (State): Of the quantized model.

    Attributes:
        reference (Dict[str, Tensor], optional): The moments that the next pass should
            give. Then each layer's output is moved to them as it is computed: what
            follows sees its input as it will be once the layer is corrected.
    """

    observes = False  # ranges stay as measured

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.outputs = LayerMeans()
        self.reference: dict[str, Tensor] | None = None
        self._calls = count_calls(state.plan)
        self._folded_correction = state.bias_correction.clone()
        self._moved: dict[str, Tensor] = {}
        self._biases: dict[str, Tensor] = {}
        self._corrected = corrected_weights(state)

    def begin(self) -> None:
        # Weights that do not change are folded and quantized once; what the biases
        # move by is added to the folded ones.
        if self._corrected or not self.grids.is_computed:
            super().begin()
            self._kept.clear()
            self._folded_correction = self.state.bias_correction.clone()
            self._note_moves()

    def _note_moves(self) -> None:
        moved = self.state.bias_correction - self._folded_correction
        self._moved = dict(zip(self.grids.layers, moved.split(self.grids.sizes)))

    def _folded(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        weight, bias = super()._folded(name, layer)
        bias = bias + self._moved[name]
        if name in self._corrected:
            self._biases[name] = bias.detach()
        return weight, bias

    def end(self) -> None:
        """Ranges stay as measured."""

    def after_layer(self, step: Step, x: Tensor) -> None:
        name = step.weight
        axis = channel_axis(self.state.layers[name], step)
        is_corrected = name in self._corrected
        moments = channel_moments(
            x, axis, is_corrected, self.state.calibration.is_robust
        )
        self.outputs.add(name, moments)
        # A layer that runs several times has one bias for all of its runs.
        if self.reference is not None and self._calls[name] == 1:
            aim = self.reference.get(name, moments)
            channels = (-1, *(1,) * (-1 - axis if axis < 0 else 0))
            mean = moments[0]
            if is_corrected:
                ratios = deviation_ratios(torch.stack([aim, moments]))
                mean = ratios * mean
                x.mul_(ratios.to(x.dtype).view(channels))
            move = (aim[0] - mean).nan_to_num_(0.0, 0.0, 0.0).to(x.dtype)
            x.add_(move.view(channels))

    @torch.no_grad()
    def update(self, reference: dict[str, Tensor], lr: float) -> None:
        """Moves each layer's moments towards those in float of the same batch.

        Args:
            reference (Dict[str, Tensor]): From :class:`Observe`.
            lr (float): Step.
        """
        moments = self.outputs.take()
        ratios = None
        if self._corrected:
            ratios = self._deviation_ratios(reference, moments)
            self._follow_weights(moments, ratios)
        if self.state.calibration.corrects_biases:
            self._correct_biases(reference, moments, lr)
        if ratios is not None:
            self.state.weight_correction.mul_(ratios.pow_(lr))
            self.state.note_weight_correction()

    def _follow_weights(self, moments: dict[str, Tensor], ratios: Tensor) -> None:
        """Gives quantized means the place that weights so corrected will give them."""
        for name, ratio in zip(self.grids.layers, ratios.split(self.grids.sizes)):
            if name in moments and name in self._corrected:
                # What the weight makes of its input grows with it, the bias not.
                mean, bias = moments[name][0], self._biases[name]
                moments[name][0] = ratio * (mean - bias) + bias

    def _correct_biases(
        self, reference: dict[str, Tensor], moments: dict[str, Tensor], lr: float
    ) -> None:
        errors = []
        for name, spec in self.state.plan.weights.items():
            if name in moments and name in reference:
                errors.append((reference[name][0] - moments[name][0]).float())
            else:
                errors.append(self.state.bias_correction.new_zeros(spec.channels))
        # A batch that is not finite somewhere corrects nothing there.
        flat = torch.cat(errors).nan_to_num_(0.0, 0.0, 0.0)
        if is_distributed():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        self.state.bias_correction.add_(flat, alpha=lr)
        self._note_moves()

    def _deviation_ratios(
        self, reference: dict[str, Tensor], moments: dict[str, Tensor]
    ) -> Tensor:
        """Ratios of all layers' channels end to end, of all processes; float32."""
        rows = [
            torch.cat([reference[name], moments[name]])
            if name in self._corrected and name in moments and name in reference
            else layer.weight.new_full((6, layer.spec.channels), torch.nan).double()
            for name, layer in self.state.layers.items()
        ]
        flat = torch.cat(rows, 1)
        there = flat.isfinite().all(0, keepdim=True)
        flat = torch.cat([torch.where(there, flat, 0.0), there.double()])
        if is_distributed():
            dist.all_reduce(flat)
        # Where no process has any, neither varies.
        return deviation_ratios((flat[:6] / flat[6].clamp(min=1)).view(2, 3, -1))

"""Calibrate: ranges from a float pass, then biases from quantized ones.

The bias correction is that of the Jacinto devkit: per batch, each layer's
mean output per channel in float and in quantized form are compared, and
``bias += lr * (float - quantized)``, with lr = 0.05 halved each epoch. Both
passes see the same batch.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor

from . import ops
from .execute import Behaviour
from .observers import is_distributed
from .ops import Op
from .plan import Step, count_calls
from .simulate import Simulate, State, condition_once
from .weights import Layer


def channel_mean(x: Tensor, axis: int) -> Tensor:
    """Mean of a layer's output over all but its channels: (C,), float32."""
    axis %= x.dim()
    dims = [d for d in range(x.dim()) if d != axis]
    return x.detach().float().mean(dims) if dims else x.detach().float()


def channel_axis(layer: Layer, step: Step) -> int:
    """Axis of the channels in a layer's output, from its end."""
    return -1 if step.kind == ops.LINEAR else 1 - layer.weight.dim()


class LayerMeans:
    """Collects the mean output per channel of each quantized layer.

    A layer that runs more than once in a pass counts with the mean of its
    runs.
    """

    def __init__(self) -> None:
        self._runs: dict[str, list[Tensor]] = {}

    def add(self, name: str, mean: Tensor) -> None:
        """Notes one run of the layer ``name``; mean: (C,)."""
        self._runs.setdefault(name, []).append(mean)

    def take(self) -> dict[str, Tensor]:
        """Means by layer, since last taken."""
        runs, self._runs = self._runs, {}
        return {
            name: means[0] if len(means) == 1 else torch.stack(means).mean(0)
            for name, means in runs.items()
        }


class Observe(Behaviour):
    """Runs in float; measures ranges and the layers' mean outputs.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.means = LayerMeans()

    def begin(self) -> None:
        condition_once(self.state)

    def end(self) -> None:
        self.state.activations.commit()

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        self.state.activations.observe(quantizer, x)
        return x

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.kind == ops.CAT and step.output is not None:
            for name, x in zip(step.inputs, ops.tensor_inputs(op, args, kwargs)):
                if name is None:
                    self.state.activations.observe(step.output, x)
        out = func(*args, **kwargs)
        if step.kind in ops.WEIGHTED and step.weight is not None and step.norm is None:
            axis = channel_axis(self.state.layers[step.weight], step)
            self.means.add(step.weight, channel_mean(out, axis))
        if step.kind not in (ops.PASS, ops.CAT):
            self._observe(step, out)
        return out

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        if step.weight is not None:
            self.means.add(step.weight, channel_mean(x, 1))
        self._observe(step, x)
        return x

    def _observe(self, step: Step, x: Any) -> None:
        if step.last and step.output is not None and isinstance(x, Tensor):
            self.state.activations.observe(step.output, x)


class Correct(Simulate):
    """Runs fake-quantized; :meth:`update` moves the biases afterwards.

    Args:
        state (State): Of the quantized model.

    Attributes:
        reference (Dict[str, Tensor], optional): The means that the next pass should
            give. Then each layer's output is moved to them as it is computed: what
            follows sees its input as it will be once the bias is corrected.
    """

    observes = False  # ranges stay as measured

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.means = LayerMeans()
        self.reference: dict[str, Tensor] | None = None
        self._calls = count_calls(state.plan)
        self._folded_correction = state.bias_correction.clone()
        self._moved: dict[str, Tensor] = {}

    def begin(self) -> None:
        # The weights do not change, so they are folded and quantized once; what
        # the biases move by is added to the folded ones.
        if not self.grids.is_computed:
            super().begin()
            self._note_moves()

    def _note_moves(self) -> None:
        moved = self.state.bias_correction - self._folded_correction
        self._moved = dict(zip(self.grids.layers, moved.split(self.grids.sizes)))

    def _folded(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        weight, bias = super()._folded(name, layer)
        return weight, bias + self._moved[name]

    def end(self) -> None:
        """Ranges stay as measured."""

    def after_layer(self, step: Step, x: Tensor) -> None:
        name = step.weight
        axis = channel_axis(self.state.layers[name], step)
        mean = channel_mean(x, axis)
        self.means.add(name, mean)
        # A layer that runs several times has one bias for all of its runs.
        if self.reference is not None and self._calls[name] == 1:
            move = (self.reference.get(name, mean) - mean).nan_to_num_(0.0, 0.0, 0.0)
            further = -1 - axis if axis < 0 else 0
            x.add_(move.to(x.dtype).view(-1, *(1,) * further))

    @torch.no_grad()
    def update(self, reference: dict[str, Tensor], lr: float) -> None:
        """Moves each bias towards the float mean of the same batch.

        Args:
            reference (Dict[str, Tensor]): From :class:`Observe`.
            lr (float): Step.
        """
        means = self.means.take()
        errors = []
        for name, spec in self.state.plan.weights.items():
            if name in means and name in reference:
                errors.append(reference[name] - means[name])
            else:
                errors.append(self.state.bias_correction.new_zeros(spec.channels))
        # A batch that is not finite somewhere corrects nothing there.
        flat = torch.cat(errors).nan_to_num_(0.0, 0.0, 0.0)
        if is_distributed():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        self.state.bias_correction.add_(flat, alpha=lr)
        self._note_moves()

"""Simulate: fake quantization in floating point, for training.

Each layer runs one convolution. Where the batch normalization behind it is
live, the weight is put on the grid it will have once folded with the running
statistics, and the normalization then runs as it would; where it is frozen,
it is folded into weight and bias and not run at all. A clamping activation is
not run either: the quantizer behind it clamps.
"""

from typing import Any, Callable, Optional, Protocol

import torch
from torch import Tensor, nn

from . import ops
from .activations import ActivationQuantizers
from .execute import Behaviour
from .kernels import Grid, fake_quantize
from .ops import Op
from .plan import Plan, Step
from .weights import (
    Layer,
    constrain_weights,
    quantize_bias,
    quantize_weight,
    widen_for_bias,
)


class State(Protocol):
    """What the behaviours work on: ``quantization.Quantization``.

    Attributes:
        plan (Plan): The plan.
        activations (ActivationQuantizers): Ranges and grids.
        layers (Dict[str, Layer]): By weight quantizer.
        bias_correction (Tensor): What calibration adds to the biases, all
            layers one after the other.
        constrained (Tensor): Whether the weights were constrained, ().
    """

    plan: Plan
    activations: ActivationQuantizers
    layers: dict[str, Layer]
    bias_correction: Tensor
    constrained: Tensor

    def correction(self, name: str) -> Tensor:
        """A layer's part of ``bias_correction``: (C,)."""


class Simulate(Behaviour):
    """Fake-quantizes weights, biases and activations.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.activations = state.activations
        self.constraint = state.plan.config['constrain_bias']
        self.bias_bits = state.plan.config['bias_bits']
        self._kept: dict[str, tuple[tuple, tuple]] = {}

    def begin(self) -> None:
        if self.state.plan.config['constrain_weights'] \
                and not self.state.constrained:
            for layer in self.state.layers.values():
                constrain_weights(layer)
            self.state.constrained.fill_(1)

    def end(self) -> None:
        self.activations.commit()

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        return self._quantize(quantizer, x, None)

    def call(self, step: Step, op: Op, func: Callable, args: tuple,
             kwargs: dict) -> Any:
        if step.kind == ops.CLIP and step.output is not None \
                and self.activations.grid(step.output) is not None:
            # The quantizer clamps.
            return self._emit(step, ops.tensor_inputs(op, args, kwargs)[0])
        if step.weight is not None and step.kind in ops.WEIGHTED:
            args, kwargs = self.quantize_layer(step, args, kwargs)
        out = func(*args, **kwargs)
        if step.kind in (ops.PASS, ops.CAT):
            return out
        if step.weight is not None and step.kind in ops.WEIGHTED:
            self.after_layer(step, out)
        return self._emit(step, out) if step.last else out

    def folds(self, step: Step, norm: nn.Module) -> bool:
        return step.weight is not None and not (
            norm.training or norm.running_var is None)

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        return self._emit(step, x) if step.last else x

    def after_layer(self, step: Step, x: Tensor) -> None:
        """A quantized layer has given ``x``; for those who measure it."""

    def _emit(self, step: Step, x: Any) -> Any:
        if step.output is None or not isinstance(x, Tensor):
            return x
        return self._quantize(step.output, x, step.clip)

    def _quantize(self, quantizer: str, x: Tensor,
                  clip: Optional[tuple]) -> Tensor:
        if self.activations.observing:
            self.activations.observe(quantizer, x, clip)
        grid = self.activations.grid(quantizer)
        # The first batch runs in float: its range is known when it ends.
        return x if grid is None else fake_quantize(x, grid, clip)

    def quantize_layer(self, step: Step, args: tuple,
                       kwargs: dict) -> tuple[tuple, dict]:
        """The call of a layer, on its quantized weight and bias."""
        x = args[0] if args else kwargs['input']
        kwargs = {key: value for key, value in kwargs.items()
                  if key not in ('input', 'weight', 'bias')}
        layer = self.state.layers[step.weight]
        grid = None if step.inputs[0] is None else self.activations.grid(
            step.inputs[0])
        if layer.norm_is_live:
            with torch.no_grad():
                scale = self._scale(step.weight, layer, layer.folded_bias(), grid)
                factor = layer.along_channels(layer.fold_factor())
            weight = quantize_weight(
                layer.weight, scale, layer.spec.format, factor)
            bias = layer.bias
        else:
            weight, scale, bias = self._folded(step.weight, layer, grid)
            bias = self._quantize_bias(step.weight, layer, scale, bias, grid)
        return (x, weight, bias) + args[3:], kwargs

    def _folded(self, name: str, layer: Layer, grid: Optional[Grid]
                ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Quantized weight, its scale, bias; kept where nothing trains it."""
        if torch.is_grad_enabled() and any(
                parameter is not None and parameter.requires_grad
                for parameter in layer.parameters):
            return self._fold(name, layer, grid)
        key = tuple((p.data_ptr(), p._version) for p in layer.parameters
                    if p is not None)
        if self.constraint == 'reduce_weight_scale':
            key += (grid, self.state.bias_correction._version)
        known = self._kept.get(name)
        if known is None or known[0] != key:
            known = self._kept[name] = (key, self._fold(name, layer, grid))
        return known[1]

    def _fold(self, name: str, layer: Layer, grid: Optional[Grid]
              ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        bias = layer.folded_bias()
        with torch.no_grad():
            scale = self._scale(name, layer, bias, grid)
        weight = quantize_weight(layer.folded_weight(), scale, layer.spec.format)
        return weight, scale, bias

    def _scale(self, name: str, layer: Layer, bias: Optional[Tensor],
               grid: Optional[Grid]) -> Tensor:
        scale = layer.scale()
        if self.constraint == 'reduce_weight_scale' and grid is not None:
            correction = self.state.correction(name)
            bias = correction if bias is None else bias + correction
            scale = widen_for_bias(scale, bias, grid.scale,
                                   self.bias_width(layer), layer.spec.format)
        return scale

    def _quantize_bias(self, name: str, layer: Layer, scale: Tensor,
                       bias: Optional[Tensor], grid: Optional[Grid]
                       ) -> Tensor:
        correction = self.state.correction(name)
        bias = correction if bias is None else bias + correction
        if grid is None:
            return bias
        with torch.no_grad():
            step = scale.flatten() * grid.scale
            error = quantize_bias(bias, step, self.bias_width(layer)).mul_(
                step).sub_(bias)
        return bias + error

    def bias_width(self, layer: Layer) -> int:
        """Width of a layer's bias in bits."""
        return self.bias_bits or 2 * layer.spec.format.bits

"""Simulate: fake quantization in floating point, for training.

Each layer runs one convolution. Where the batch normalization behind it is
live, the weight is put on the grid it will have once folded with the running
statistics, and the normalization then runs as it would; where it is frozen,
it is folded into weight and bias and not run at all. A clamping activation is
not run either: the quantizer behind it clamps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional, Protocol

import torch
from torch import Tensor, nn

from ..plan.plan import Step
from ..quantizers.computed_weights import quantize_computed_weight
from ..quantizers.layers import Layer, channel_rows, from_channel_rows
from ..quantizers.learned_scales import learned_weight
from ..quantizers.mmrazor.fake_quants import FakeQuants
from ..quantizers.weight_grids import WeightGrids
from ..quantizers.weights import (
    fold_layer,
    quantize_bias,
    quantize_weight,
    straight_through,
)
from ..record import ops
from ..record.ops import Op
from ..targets.grid import Grid
from .behaviour import Behaviour
from .corrections.conditioning import compute_grids, condition_once
from .state import State

# Like layers, they give a tensor of their own, which their backward pass does not need.
_MAKES_ITS_OWN = (ops.ADD, ops.AVERAGE, ops.MATMUL)


class _HasGrids(Protocol):
    """What computes grids, and can go back to earlier ones."""

    def present(self) -> tuple:
        """The grids as they are."""

    def become(self, grids: tuple) -> None:
        """Goes back to what :meth:`present` gave."""


class Simulate(Behaviour):
    """Fake-quantizes weights, biases and activations.

    Args:
        state (State): Of the quantized model.
        fake_quants (FakeQuants, optional): Of others, in place of our own.
    """

    def __init__(self, state: State, fake_quants: Optional[FakeQuants] = None) -> None:
        self.state = state
        self.activations = state.activations
        self._fake_quants = fake_quants
        self._weights = None if fake_quants is None else fake_quants.weight
        self._activations = None if fake_quants is None else fake_quants.activation
        self.grids = WeightGrids(state.plan, state.layers, state.activations)
        # A bias that is made to fit differs from its integers by less than the
        # accumulator's last bit; only one that is cut off has to be simulated.
        self.saturates = state.plan.config['constrain_bias'] == 'saturate'
        self._makes_its_own = {
            name
            for name, step in state.plan.steps.items()
            if step.kind in _MAKES_ITS_OWN and not step.follows
        }
        self._has_begun = False
        self._unlearned: Optional[Tensor] = None
        self._kept: dict[str, tuple[tuple, tuple]] = {}
        self._live: set[str] = set()  # layers behind which statistics are live
        self._uncorrected = 0  # how many of them

    @property
    def observes(self) -> bool:
        """bool: Whether ranges are measured as well."""
        return self.activations.is_due

    def begin(self) -> None:
        if not self._has_begun:
            condition_once(self.state)
            self._has_begun = True
        self.activations.begin_step()
        compute_grids(self.grids, self.state)
        if self.state.learned is None and self._fake_quants is None:
            self.grids.quantize_all()
        self._unlearned = self._all_learned()

    def _all_learned(self) -> Optional[Tensor]:
        """A zero that all learned scales have a part in.

        Ranges that are not known yet have none in the outputs, and on several
        processes each parameter must get a gradient.
        """
        owners = self.activations.learned, self._fake_quants
        parameters = [
            parameter
            for owner in owners
            for parameter in (() if owner is None else owner.parameters())
            if parameter.requires_grad
        ]
        if not parameters or not torch.is_grad_enabled():
            return None
        total: Any = sum(parameter.sum() for parameter in parameters)
        return total * 0.0

    def end(self) -> None:
        self.activations.end_step()
        self.grids.forget_quantized()
        if self._uncorrected < len(self._live):
            # What a calibration corrected is in the statistics of a batch already.
            for name in self._live:
                self.state.correction(name).zero_()
            self._uncorrected = len(self._live)
        for part in (self._weights, self._activations):
            if part is not None:
                part.end_step()

    def remember(self) -> tuple:
        return self.grids.present(), self.activations.present()

    @contextmanager
    def replay(self, memory: tuple) -> Iterator[None]:
        owners: tuple[_HasGrids, ...] = self.grids, self.activations
        observing = self.activations.observing
        present = [owner.present() for owner in owners]
        for owner, past in zip(owners, memory):
            owner.become(past)
        self.activations.observing = False
        try:
            yield
        finally:
            self.activations.observing = observing
            for owner, now in zip(owners, present):
                owner.become(now)

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        return self._quantize(quantizer, x, None)

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if (
            step.kind == ops.CLIP
            and step.output is not None
            and self.activations.has_range(step.output)
        ):
            # The quantizer clamps.
            clipped = args[0] if args else ops.tensor_inputs(op, args, kwargs)[0]
            return self._emit(step, clipped)
        if step.weight is not None and step.kind in ops.WEIGHTED:
            args, kwargs = self.quantize_layer(step, args, kwargs)
        elif step.weight_format is not None:
            args, kwargs = quantize_computed_weight(step, args, kwargs)
        if step.kind == ops.CAT and None in step.inputs:
            args, kwargs = self._quantize_constants(step, op, args, kwargs)
        out = func(*args, **kwargs)
        if step.kind in (ops.PASS, ops.CAT):
            return out
        if step.weight is not None and step.kind in ops.WEIGHTED:
            self.after_layer(step, out)
        return self._emit(step, out) if step.last else out

    def _quantize_constants(
        self, step: Step, op: Op, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        """Puts what no recorded call made on the grid that all of `cat` share."""
        tensors = ops.tensor_inputs(op, args, kwargs)
        # In training a module may concatenate something else first.
        if step.output is None or len(tensors) != len(step.inputs):
            return args, kwargs
        operands = [
            self._quantize(step.output, x, None) if name is None else x
            for name, x in zip(step.inputs, tensors)
        ]
        return ops.replace_inputs(op, args, kwargs, operands)

    def folds(self, step: Step, norm: nn.Module) -> bool:
        return step.weight is not None and not (
            norm.training or norm.running_var is None
        )

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        return self._emit(step, x) if step.last else x

    def after_layer(self, step: Step, x: Tensor) -> None:
        """A quantized layer has given ``x``; for those who measure it."""

    def _emit(self, step: Step, x: Any) -> Any:
        if step.output is None or not isinstance(x, Tensor):
            return x
        # What a layer of the chain has just made belongs to nobody else, and no
        # layer's backward pass needs its own output.
        in_place = step.weight is not None or step.chain in self._makes_its_own
        return self._quantize(step.output, x, step.clip, in_place)

    def _quantize(
        self, quantizer: str, x: Tensor, clip: Optional[tuple], in_place: bool = False
    ) -> Tensor:
        if self._activations is not None:
            self._activations.observing = self.activations.observing
            bounded = x if clip is None else x.clamp(*clip)
            return self._activations.quantize(quantizer, bounded)
        if self.observes:
            self.activations.observe(quantizer, x, clip)
        return self.activations.quantize(quantizer, x, clip, in_place)

    def quantize_layer(
        self, step: Step, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        """The call of a layer, on its quantized weight and bias."""
        x = args[0] if args else kwargs['input']
        name = step.weight
        layer = self.state.layers[name]
        if layer.norm_is_live:
            self._live.add(name)
            weight = layer.weight
            on_grid = self.grids.on_grid(name)
            if on_grid is None:
                step_size = self.grids.live_step(name)
                weight = self._on_grid(name, layer, weight, step_size)
            else:
                weight = straight_through(weight, on_grid)
            return ops.replace_operands(args, kwargs, x, weight, layer.bias)
        weight, bias = self._folded(name, layer)
        if self.saturates and step.inputs[0] is not None:
            grid = self.activations.grid(step.inputs[0])
            if grid is not None:
                bias = self._saturate(name, bias, grid)
        return ops.replace_operands(args, kwargs, x, weight, bias)

    def _folded(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        """Quantized weight, and bias; kept where nothing trains them."""
        if self._weights is not None:
            return self._fold(name, layer)
        learns = self.state.learned is not None or self._fake_quants is not None
        # As a rule the weight is, and tells it soonest.
        trained = (
            learns
            or layer.parameter.requires_grad
            or any(
                parameter is not None and parameter.requires_grad
                for parameter in layer.parameters
            )
        )
        if trained and torch.is_grad_enabled():
            return self._fold(name, layer)
        key = (
            self.grids.version,
            *((p.data_ptr(), p._version) for p in layer.parameters if p is not None),
        )
        known = self._kept.get(name)
        if known is None or known[0] != key:
            known = self._kept[name] = (key, self._fold(name, layer))
        return known[1]

    def _fold(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        """Quantized weight, and bias with what calibration adds to it."""
        # The same in a second run, for activation checkpointing.
        ours = self.state.learned is None and self._fake_quants is None
        if layer.norm is not None and ours and not layer.is_scaled:
            return fold_layer(layer, self.grids.folding(name), self.grids.on_grid(name))
        weight, bias = layer.folded()
        weight = self._on_grid(name, layer, weight, self.grids.step(name))
        correction = self.state.correction(name)
        # A copy, as with a bias: what is kept does not change with the buffer.
        return weight, correction.clone() if bias is None else bias + correction

    def _on_grid(self, name: str, layer: Layer, weight: Tensor, step: Tensor) -> Tensor:
        """A weight, folded or not, on the grid of these steps: (C,)."""
        fmt, learned = layer.spec.format, self.state.learned
        weight = layer.scaled(weight)
        if self._weights is not None:
            # Its scale is that of the folded weight.
            factor = (self.grids.step(name) / step)[:, None]
            rows = self._weights.quantize(name, channel_rows(layer, weight) * factor)
            weight = from_channel_rows(layer, rows / factor)
        elif learned is not None:
            rows = learned_weight(channel_rows(layer, weight), step, learned, name, fmt)
            weight = from_channel_rows(layer, rows)
        else:
            on_grid = self.grids.on_grid(name)
            if on_grid is None:
                size = layer.along_channels(step)
                weight = quantize_weight(weight, size, fmt)
            else:
                weight = straight_through(weight, on_grid)
        weight = layer.unscaled(weight)
        if self._unlearned is not None:
            weight, self._unlearned = weight + self._unlearned, None
        return weight

    def _saturate(self, name: str, bias: Tensor, grid: Grid) -> Tensor:
        with torch.no_grad():
            unit = self.grids.step(name) * grid.scale
            factor = self.state.layers[name].output_factor
            unit = unit if factor is None else unit * factor
            width = self.state.plan.bias_width(name)
            change = quantize_bias(bias, unit, width).mul_(unit).sub_(bias)
        return bias + change

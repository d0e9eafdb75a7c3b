"""The grids of all weights of a model, computed together.

A model has many small layers, and a grid takes some twenty operations on a
handful of numbers. So the layers' channels are laid end to end, and each
operation runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..plan.plan import Plan
from ..targets.formats import integer_bounds
from ..targets.grid import inverse_root
from .activation_grids import SMALLEST_RANGE, power_of_two_above
from .activations import ActivationQuantizers
from .kernels import native, triton_kernels
from .layers import Layer, channel_reach
from .weights import Folding, bias_limits

# No channel's grid may be finer than the tensor's by more than this: one
# accumulator format has to hold them all.
MAX_CHANNEL_RATIO = 256.0
# Least bias in units of the bias's range that is worth a coarser grid; also keeps
# zero out of the exponent.
SMALLEST_NEED = 2.0**-100


class WeightGrids:
    """Steps of the grids of all weights, one for each output channel.

    A per-tensor format has the same step in all channels of a layer. Where
    the plan's ``constrain_bias`` is ``'reduce_weight_scale'``, a step is
    coarsened until the bias, in units of input scale times weight scale, fits
    its width for every call of the layer.

    Args:
        plan (Plan): The plan.
        layers (Mapping[str, Layer]): By weight quantizer, in the plan's order.
        activations (ActivationQuantizers): For the scales of the inputs.
    """

    def __init__(
        self,
        plan: Plan,
        layers: Mapping[str, Layer],
        activations: ActivationQuantizers,
    ) -> None:
        self.layers = layers
        self.activations = activations
        self.widens = plan.config['constrain_bias'] == 'reduce_weight_scale'
        device = activations.low.device
        specs = [layer.spec for layer in layers.values()]
        self.sizes = [spec.channels for spec in specs]
        sizes = torch.tensor(self.sizes, device=device)
        self.layer_of = torch.arange(len(specs), device=device).repeat_interleave(sizes)

        def column(values: list) -> Tensor:
            return torch.tensor(values, device=device).repeat_interleave(sizes)

        self.low, self.high = (
            column([float(integer_bounds(spec.format)[end]) for spec in specs])
            for end in (0, 1)
        )
        self.per_channel = column([spec.format.per_channel for spec in specs])
        self.power_of_two = column([spec.format.power_of_two for spec in specs])
        self.eps = column(
            [0.0 if layer.norm is None else layer.norm.eps for layer in layers.values()]
        )
        self.bias_high = column(
            [bias_limits(plan.bias_width(spec.name))[1] for spec in specs]
        )
        self.inputs = self._input_table(plan, device)
        self._zeros = [torch.zeros(size, device=device) for size in self.sizes]
        self._ones = [torch.ones(size, device=device) for size in self.sizes]
        # Whether the channels of all weights are their rows.
        self._by_row = all(
            layer.spec.axis == 0 and len(layer.weight) == layer.spec.channels
            for layer in layers.values()
        )
        self._reach: native.Reach | triton_kernels.Reach | None = None
        self.version = 0  # changes with the steps
        self._all_steps: Tensor | None = None
        self._places = dict(zip(layers, self._spans()))
        self._columns: tuple[Tensor, ...] = ()
        self._live_columns: Tensor | None = None
        self._foldings: dict[str, Folding] = {}
        # Weights on their grids, where all are put there at once.
        self._on_grids: dict[str, Tensor] = {}
        self._live: tuple[list[bool], Tensor] | None = None

    def _spans(self) -> Iterator[slice]:
        """Where each layer is among the channels of all."""
        start = 0
        for size in self.sizes:
            yield slice(start, start + size)
            start += size

    def step(self, name: str) -> Tensor:
        """Step of the folded weight's grid: (C,)."""
        return self._all_steps[self._places[name]]

    def live_step(self, name: str) -> Tensor:
        """The same in terms of the weight before folding: (C,), may be negative.

        A channel that its normalization multiplies by zero (as residual
        branches start) has no grid; it gets one for the weight as it is.
        """
        return self._live_columns[self._places[name]]

    def folding(self, name: str) -> Folding:
        """What folding the layer's normalization takes, as last computed."""
        # Made on demand: live normalizations are not folded. A cut for each layer
        # takes as long as the layer does on a fast device.
        if not self._foldings:
            parts = zip(*(column.split(self.sizes) for column in self._columns))
            self._foldings = dict(zip(self.layers, map(Folding._make, parts)))
        return self._foldings[name]

    @torch.no_grad()
    def quantize_all(self) -> None:
        """Puts all weights on their grids, where one launch can."""
        layers = self.layers.values()
        if self._reach is None or any(
            layer.correction is not None or layer.is_scaled for layer in layers
        ):
            return
        _, _, step, factor_in_steps, *_ = self._columns
        live_step = self._live_columns
        is_live = self._live_mask([layer.norm_is_live for layer in layers])
        weights = [layer.weight for layer in layers]
        on_grids = self._reach.quantize(
            weights,
            torch.where(is_live, live_step.reciprocal(), factor_in_steps),
            torch.where(is_live, live_step, step),
            (self.low, self.high),
        )
        self._on_grids = dict(zip(self.layers, on_grids))

    def forget_quantized(self) -> None:
        """Drops what :meth:`quantize_all` made."""
        self._on_grids = {}

    def on_grid(self, name: str) -> Tensor | None:
        """A weight as :meth:`quantize_all` left it; None where it did not."""
        return self._on_grids.get(name)

    def _live_mask(self, flags: list[bool]) -> Tensor:
        """Channels of layers with live normalizations, bool."""
        if self._live is None or self._live[0] != flags:
            channels = torch.tensor(flags, device='cpu')
            if self.layer_of.is_cuda:
                # From other memory a copy waits for the device.
                channels = channels.pin_memory()
            channels = channels.to(self.layer_of.device, non_blocking=True)
            self._live = flags, channels[self.layer_of]
        return self._live[1]

    @property
    def all_steps(self) -> Tensor:
        """Tensor: Steps of all layers, end to end."""
        return self._all_steps

    def present(self) -> tuple:
        """The grids as they are; :meth:`compute` does not change what this holds."""
        return (
            self.version,
            self._all_steps,
            self._live_columns,
            self._columns,
            self._foldings,
            self._on_grids,
        )

    def become(self, grids: tuple) -> None:
        """Goes back to what :meth:`present` gave."""
        (
            self.version,
            self._all_steps,
            self._live_columns,
            self._columns,
            self._foldings,
            self._on_grids,
        ) = grids

    @property
    def is_computed(self) -> bool:
        """bool: Whether :meth:`compute` was ever called."""
        return self._all_steps is not None

    @torch.no_grad()
    def compute(self, bias_correction: Tensor, given: Tensor | None = None) -> None:
        """Computes all steps from the parameters as they are now.

        Args:
            bias_correction (Tensor): What calibration adds to the biases of
                all layers, end to end.
            given (Tensor, optional): Steps that do not follow from the weights, end
                to end; zero where they do.
        """
        low, high = self._channel_reach()
        reach = torch.maximum(high, -low)
        variance = self._from_norms('running_var', self._ones) + self.eps
        deviation = inverse_root(variance)
        factor = self._from_norms('weight', self._ones) * deviation
        offset = self._biases() - self._from_norms('running_mean', self._zeros)
        bias = offset * factor + self._from_norms('bias', self._zeros)
        bias = bias + bias_correction
        scaled = reach * factor.abs()
        largest = self._layer_max(scaled)
        scaled = torch.where(
            self.per_channel,
            torch.maximum(scaled, largest / MAX_CHANNEL_RATIO),
            largest,
        ).clamp_(min=SMALLEST_RANGE)
        step = torch.where(
            self.power_of_two,
            power_of_two_above(scaled) / (self.high + 1),
            scaled / self.high,
        )
        if given is not None:
            step = torch.where(given > 0, given, step)
        if self.widens:
            step = torch.maximum(step, self._least_step(self._scaled_biases(bias)))
        # Comparing would wait for an accelerator.
        known = self._all_steps
        if known is None or step.is_cuda or not torch.equal(step, known):
            self.version += 1
        self._all_steps = step
        unscaled = self._layer_max(reach) / self.high
        live = torch.where(
            factor.abs() > SMALLEST_RANGE,
            step / factor,
            unscaled.clamp_(min=SMALLEST_RANGE),
        )
        self._columns = factor, bias, step, factor / step, deviation, offset
        self._live_columns, self._on_grids = live, {}
        self._foldings = {}

    def _channel_reach(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest weight of each channel, end to end."""
        weights = [layer.scaled(layer.weight) for layer in self.layers.values()]
        if self._by_row:
            kernels = None
            if all(map(triton_kernels.takes_rows, weights, self.sizes)):
                kernels = triton_kernels
            elif all(native.takes(x) and x.is_contiguous() for x in weights):
                kernels = native
            if kernels is not None:
                if self._reach is None:
                    shapes = [(len(x), x.numel() // len(x)) for x in weights]
                    self._reach = kernels.Reach(shapes, self.layer_of.device)
                return self._reach(weights)
        self._reach = None
        ends = [channel_reach(layer) for layer in self.layers.values()]
        low, high = (torch.cat(end) for end in zip(*ends))
        return low, high

    def _biases(self) -> Tensor:
        """Biases of all layers, end to end."""
        return torch.cat(
            [
                zeros if layer.bias is None else layer.bias
                for layer, zeros in zip(self.layers.values(), self._zeros)
            ]
        )

    def _scaled_biases(self, bias: Tensor) -> Tensor:
        """Biases of all layers as they are added to scaled channels."""
        layers = self.layers.values()
        if all(layer.output_factor is None for layer in layers):
            return bias
        parts = zip(layers, bias.split(self.sizes))
        return torch.cat([layer.scaled_bias(part) for layer, part in parts])

    def _least_step(self, bias: Tensor) -> Tensor:
        """Step that makes the folded biases fit their width."""
        no_input = self.bias_high.new_full((1,), torch.inf)
        scales = torch.cat([self.activations.scales, no_input])
        least = scales[self.inputs].amin(1)[self.layer_of]
        need = bias.abs() / (self.bias_high * least)
        need = torch.where(self.per_channel, need, self._layer_max(need))
        return torch.where(
            self.power_of_two,
            power_of_two_above(need.clamp(min=SMALLEST_NEED)),
            need,
        )

    def _layer_max(self, values: Tensor) -> Tensor:
        """Largest value of each layer, in each of its channels."""
        largest = values.new_zeros(len(self.sizes)).scatter_reduce_(
            0, self.layer_of, values, 'amax'
        )
        return largest[self.layer_of]

    def _from_norms(self, name: str, default: list[Tensor]) -> Tensor:
        found = (
            None if layer.norm is None else getattr(layer.norm, name)
            for layer in self.layers.values()
        )
        return torch.cat(
            [given if value is None else value for value, given in zip(found, default)]
        )

    def _input_table(self, plan: Plan, device: torch.device) -> Tensor:
        """Quantizers of each layer's inputs; a last one stands for none."""
        none = len(self.activations.specs)
        inputs: dict[str, set[int]] = {name: {none} for name in self.layers}
        for step in plan.steps.values():
            if step.weight is not None and not step.follows and step.inputs[0]:
                for name in (step.inputs[0], *step.again):
                    inputs[step.weight].add(self.activations.index[name])
        width = max(len(found) for found in inputs.values())
        rows = [[*found, *[none] * (width - len(found))] for found in inputs.values()]
        return torch.tensor(rows, device=device)

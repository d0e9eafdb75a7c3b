"""Layers: their operands as integers, computed once, and their exact sums."""

from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ...plan.plan import Step
from ...quantizers.computed_weights import computed_layer, folds_norm
from ...quantizers.weights import quantize_bias, to_integers
from ...record import ops
from ...targets.grid import Grid
from ...targets.target import get_target
from ..behaviour import Behaviour
from ..fake_quantize import Simulate
from ..state import State
from .exact_functions import narrow
from .exact_sums import EXACT_IN_FLOAT32, exact_pieces, largest_sum
from .ongoing_pass import OngoingPass
from .sampling import convolve_samples

# Parts of a layer in float32 that take less time than all of it in float64.
MOST_PARTS = 4


class IntegerLayer(NamedTuple):
    """A layer with its operands ready.

    Args:
        weight (Tensor): Integers, in the dtype that accumulates exactly.
        bias (Tensor, optional): Integers in units of input scale times weight
            scale.
        multiplier (Tensor): From accumulator to output integers, shaped to
            multiply the output; float32.
        offset (Tensor, optional): In place of ``bias``, real numbers to add behind
            the multiplication, shaped alike.
        pieces (List[Tuple[int, int]], optional): Of a transposed convolution with exact
            sums, input channels that are added up in one, see :func:`.exact_pieces`.
        parts (Tuple[Tensor, ...]): Weights of so many input channels that float32 holds
            their sums, where it does not hold all of them; none where there would be
            more than :data:`MOST_PARTS`.
    """

    weight: Tensor
    bias: Optional[Tensor]
    multiplier: Tensor
    offset: Optional[Tensor] = None
    pieces: Optional[list[tuple[int, int]]] = None
    parts: tuple[Tensor, ...] = ()


class Layers(Behaviour):
    """The layers of a quantized model, on integers.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.activations = state.activations
        target = get_target(state.engine or state.plan.config['target'])
        self.engine = target.arithmetic()
        self.limits_bias = state.plan.config['constrain_bias'] is not None
        self.fallback = Simulate(state)
        self._layers: dict[tuple, IntegerLayer] = {}
        self._here = OngoingPass()

    def layer_for(
        self, step: Step, args: tuple, kwargs: dict, given: Grid, grid: Optional[Grid]
    ) -> Optional[IntegerLayer]:
        """The operands of a layer; None where it has no integers."""
        if step.weight is not None:
            return self.layer_of(step, given, grid)
        if step.weight_format is not None:
            return self._computed_layer(step, args, kwargs, given, grid)
        return None

    def is_exact_layer(
        self, step: Step, given: Optional[Grid], grid: Optional[Grid]
    ) -> bool:
        """Whether the engine has no integer kernel for a layer between two grids.

        It then scales exact sums to real numbers, and these are put on the grid.
        """
        return (
            step.kind == ops.CONV_TRANSPOSE
            and step.weight is not None
            and self.engine.has_exact_functions
            and narrow(given) is not None
            and (step.joins is not None or narrow(grid) is not None)
        )

    def exact_total(
        self,
        step: Step,
        func: Callable,
        args: tuple,
        kwargs: dict,
        layer: IntegerLayer,
        given: Grid,
        x: Tensor,
    ) -> Tensor:
        """Exact sums of a layer over the integers ``x`` of its input."""
        is_deformable = step.kind == ops.DEFORM_CONV
        if is_deformable and self.engine.rounds_samples:
            total = convolve_samples(x, layer.weight, layer.bias, given, *args[3:])
        elif layer.parts and x.shape[_axis(layer, x)] == layer.weight.shape[1]:
            total = _total_of_parts(func, args, kwargs, layer, x)
        else:
            args, kwargs = ops.replace_operands(
                args, kwargs, x.to(layer.weight.dtype), layer.weight, layer.bias
            )
            total = func(*args, **kwargs)
        if not is_deformable or self.engine.rounds_samples:
            total = _exact(total)
        if total.is_cuda and step.kind in (ops.CONV, ops.CONV_TRANSPOSE):
            total = _laid_out_by_cudnn(total, x, layer.weight)
        return total

    def total_in_pieces(
        self,
        step: Step,
        func: Callable,
        args: tuple,
        kwargs: dict,
        layer: IntegerLayer,
        given: Grid,
        x: Tensor,
    ) -> Tensor:
        """Sums of a transposed convolution as its file adds them up, float32."""
        channels = x.dim() - layer.weight.dim() + 1
        total = None
        for start, end in layer.pieces:
            weight = layer.weight[start:end].float()
            piece = layer._replace(weight=weight, bias=None)
            part = x.narrow(channels, start, end - start)
            sums = self.exact_total(step, func, args, kwargs, piece, given, part)
            total = sums if total is None else total + sums
        return total + _shaped(layer.bias.float(), layer.weight)

    def _multiplier(
        self, scale: Tensor, given: Grid, grid: Optional[Grid], weight: Tensor
    ) -> Tensor:
        """From a layer's sums to steps of its output, or to real numbers: shaped."""
        unit = scale.float() * given.scale
        if grid is not None:
            unit = self.engine.multiplier(scale, given, grid)
        return _shaped(unit, weight)

    def layer_of(self, step: Step, given: Grid, grid: Optional[Grid]) -> IntegerLayer:
        """The operands of a layer between two grids, computed once.

        Without the second one its result is a real number.
        """
        key = (step.weight, given, grid)
        if key not in self._layers:
            self._layers[key] = self._make_layer(step, given, grid)
        return self._layers[key]

    @torch.no_grad()
    def integer_weight(self, name: str) -> Tensor:
        """The integers of a folded weight, float32, by weight quantizer."""
        layer = self.state.layers[name]
        scale = layer.along_channels(self.fallback.grids.step(name))
        folded = layer.scaled(layer.folded()[0])
        return to_integers(folded, scale, layer.spec.format)

    @torch.no_grad()
    def integer_bias(self, name: str, given: Grid) -> Tensor:
        """A folded bias in units of the accumulator on an input's grid: (C,)."""
        bias = self.state.layers[name].scaled_bias(self.real_bias(name))
        unit = self.fallback.grids.step(name).double() * given.scale
        width = self.state.plan.bias_width(name) if self.limits_bias else None
        return quantize_bias(bias.double(), unit, width)

    @torch.no_grad()
    def real_bias(self, name: str) -> Tensor:
        """A folded bias with what calibration added to it: (C,)."""
        bias = self.state.layers[name].folded()[1]
        correction = self.state.correction(name)
        return correction if bias is None else bias + correction

    def _make_layer(
        self, step: Step, given: Grid, grid: Optional[Grid]
    ) -> IntegerLayer:
        name = step.weight
        integers, bias = self.integer_weight(name), self.integer_bias(name, given)
        scale = self.fallback.grids.step(name)
        multiplier = self._multiplier(scale, given, grid, integers)
        spec = self.state.plan.weights[name]
        dtype = (
            torch.float32
            if largest_sum(integers, bias, spec.axis, given) < EXACT_IN_FLOAT32
            else torch.float64
        )
        layer = IntegerLayer(integers.to(dtype), bias.to(dtype), multiplier)
        if step.kind == ops.CONV_TRANSPOSE and self.engine.has_exact_functions:
            is_grouped = integers.shape[1] != spec.channels
            pieces = [(0, len(integers))]
            if not is_grouped:
                pieces = exact_pieces(layer.weight, 1, given)
            layer = layer._replace(pieces=pieces)
        elif step.kind in (ops.CONV, ops.LINEAR) and dtype is torch.float64:
            pieces = exact_pieces(integers, 0, given)
            if len(pieces) <= MOST_PARTS:
                parts = (integers[:, start:end].contiguous() for start, end in pieces)
                layer = layer._replace(parts=tuple(parts))
        return self._with_offset(layer, bias, scale, given)

    def _computed_layer(
        self, step: Step, args: tuple, kwargs: dict, given: Grid, grid: Optional[Grid]
    ) -> Optional[IntegerLayer]:
        """A layer whose weight the model has just computed, if it can be one."""
        norm = self.norm_of(step)
        if not folds_norm(step.weight_format, norm):
            return None
        self._here.folded.add(step.chain)
        integers, size, bias = computed_layer(step, args, kwargs, given, norm)
        multiplier = self._multiplier(size, given, grid, integers)
        layer = IntegerLayer(integers, bias, multiplier)
        return self._with_offset(layer, bias, size, given)

    def _with_offset(
        self, layer: IntegerLayer, bias: Optional[Tensor], scale: Tensor, given: Grid
    ) -> IntegerLayer:
        """A layer whose bias is added as the engine adds it."""
        if not self.engine.has_real_biases or bias is None:
            return layer
        if not bias.any():
            # The engine leaves it out.
            return layer._replace(bias=None)
        real = bias.float() * (scale.float() * given.scale)
        return layer._replace(bias=None, offset=_shaped(real, layer.weight))

    def norm_of(self, step: Step) -> Optional[_BatchNorm]:
        """The batch normalization in a step's chain."""
        if not step.norm:
            return None
        norm: Any = self.state.executor.root.get_submodule(step.norm)
        return norm


def _axis(layer: IntegerLayer, x: Tensor) -> int:
    """Where a layer's input has its channels."""
    return x.dim() - layer.weight.dim() + 1


def _total_of_parts(
    func: Callable, args: tuple, kwargs: dict, layer: IntegerLayer, x: Tensor
) -> Tensor:
    """Sums of a layer without groups, float64, from those of parts of its input."""
    total = None
    start = 0
    for weight in layer.parts:
        part = x.narrow(_axis(layer, x), start, weight.shape[1])
        start += weight.shape[1]
        args, kwargs = ops.replace_operands(args, kwargs, part, weight, None)
        sums = func(*args, **kwargs).double()
        total = sums if total is None else total.add_(sums)
    if layer.bias is not None:
        total.add_(_shaped(layer.bias, layer.weight))
    return total


def _shaped(multiplier: Tensor, weight: Tensor) -> Tensor:
    """One number per output channel, to multiply what a weight gives."""
    return multiplier.view((-1,) + (1,) * (weight.dim() - 2))


def _laid_out_by_cudnn(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """What a convolution without cuDNN gave, as cuDNN lays it out in memory.

    The float model has it so, and may view it so.
    """
    is_last = any(
        item.dim() == 4 and item.stride(1) == 1 and not item.is_contiguous()
        for item in (x, weight)
    )
    return total.contiguous(memory_format=torch.channels_last) if is_last else total


def _exact(total: Tensor) -> Tensor:
    # An algorithm for convolutions of float64 may be off by a fraction.
    return total.round_() if total.is_cuda else total

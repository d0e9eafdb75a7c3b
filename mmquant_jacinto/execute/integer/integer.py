"""Integer: what the deployed engine computes, for validation and test.

Tensors keep flowing in dequantized form, so that any code of the model that
the plan does not know sees ordinary numbers; but each quantized one carries
its integers (less the zero point, in a floating point tensor), and a step
whose operands all carry them computes on them alone. Sums of products of
integers are exact in float32 below 2^24; where a layer can exceed that, it
computes in float64. How the result is scaled to the output's grid is the
engine's affair: see :mod:`~mmquant_jacinto.targets.fixed_point`.
"""

from contextlib import ExitStack
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...plan.plan import Step
from ...quantizers.computed_weights import (
    computed_layer,
    folds_norm,
    quantize_computed_weight,
)
from ...quantizers.weights import quantize_bias, to_integers
from ...record import ops
from ...record.ops import Op
from ...targets.grid import Bounds, Grid, divisor, round_tensor
from ...targets.target import get_target
from ..behaviour import Behaviour
from ..conditioning import compute_grids
from ..fake_quantize import Simulate
from ..in_place_calls import is_in_place
from ..state import State
from . import exact_functions
from .carried_integers import carry, integers_of, tag_of, with_integers
from .exact_functions import is_exact, is_global_pool, narrow
from .exact_sums import exact_sums, largest_sum
from .needed_ranges import NeededRanges
from .ongoing_pass import COMPUTING, OngoingPass
from .sampling import convolve_samples
from .stable_topk import StableOrder

EXACT_IN_FLOAT32 = 2.0**24


class IntegerLayer(NamedTuple):
    """A layer with its operands ready.

    Args:
        weight (Tensor): Integers, in the dtype that accumulates exactly.
        bias (Tensor, optional): Integers in units of input scale times weight
            scale.
        multiplier (Tensor): From accumulator to output integers, shaped to
            multiply the output; float32.
    """

    weight: Tensor
    bias: Optional[Tensor]
    multiplier: Tensor


class Integer(Behaviour):
    """Computes on integers.

    What is computed once (integer weights, biases, multipliers) is kept until
    a new behaviour is made, which each switch to evaluation does.

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
        self._tables: dict[tuple, Tensor] = {}
        self.ranges = NeededRanges(state.activations)
        self._here = OngoingPass()

    def begin(self) -> None:
        with COMPUTING:
            if not self.fallback.grids.is_computed:
                compute_grids(self.fallback.grids, self.state)
        if self.engine.has_exact_functions and self._here.order is None:
            self._here.order = StableOrder()
            self._here.order.__enter__()

    def end(self) -> None:
        self.ranges.report()
        order, self._here.order = self._here.order, None
        if order is not None:
            order.__exit__(None, None, None)

    def discard(self) -> None:
        self.end()

    def enter_region(self) -> None:
        device = self.activations.low.device.type
        contexts = self._here.contexts
        contexts.append(ExitStack())
        # Half precision cannot hold the accumulators.
        contexts[-1].enter_context(torch.autocast(device, enabled=False))
        contexts[-1].enter_context(exact_sums(device))

    def leave_region(self) -> None:
        self._here.contexts.pop().close()

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        self.ranges.check(quantizer, x)
        return self._quantize(quantizer, x, None)

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.follows and (self.is_folded(step) or not step.norm):
            # The head of the chain has done it.
            return args[0] if args else kwargs['input']
        tensors = ops.tensor_inputs(op, args, kwargs)
        self.ranges.check_inputs(step, tensors)
        if step.kind == ops.PASS:
            known = tag_of(tensors[0])  # before it is overwritten
            out = func(*args, **kwargs)
            if out is tensors[0] and not is_in_place(func, kwargs):
                return out
            if self.activations.factor(step.output) is not None and known is not None:
                return self._move_scaled(op, func, args, kwargs, out)
            return carry(known, out)
        integers = [integers_of(x) for x in tensors]
        if step.kind == ops.CAT:
            return self._cat(step, func(*args, **kwargs), integers)
        if (
            self._grid(step.output) is not None
            and all(item is not None for item in integers)
            and not self._opens_channels(step)
        ):
            out = self._compute(step, op, func, args, kwargs, integers)
            if out is not None:
                return out
        if step.weight is not None and step.kind in ops.WEIGHTED:
            args, kwargs = self.fallback.quantize_layer(step, args, kwargs)
        elif step.weight_format is not None:
            self._here.folded.discard(step.chain)
            args, kwargs = quantize_computed_weight(step, args, kwargs)
        if step.kind == ops.CLIP and self._grid(step.output) is not None:
            out = tensors[0]  # the quantizer clamps
        else:
            out = self._compute_real(step, op, func, args, kwargs)
        incomplete = step.norm and not step.weight and not step.last
        return out if incomplete else self._emit(step, out)

    def folds(self, step: Step, norm: nn.Module) -> bool:
        return self.is_folded(step)

    @staticmethod
    def _move_scaled(
        op: Op, func: Callable, args: tuple, kwargs: dict, out: Any
    ) -> Any:
        """What moves elements of scaled channels moves their integers."""
        (x,) = ops.tensor_inputs(op, args, kwargs)[:1]
        grid, integers = integers_of(x) or (None, None)
        if grid is None or not isinstance(out, Tensor):
            return out
        args, kwargs = ops.replace_inputs(op, args, kwargs, [integers])
        return with_integers(out, grid, func(*args, **kwargs))

    def _opens_channels(self, step: Step) -> bool:
        """Whether a step is part of a smooth function between scaled channels.

        It is one of real numbers.
        """
        if step.weight is not None or step.kind in (ops.PASS, ops.CAT):
            return False
        names = (*step.inputs, step.output)
        return any(self.activations.factor(name) is not None for name in names)

    def is_folded(self, step: Step) -> bool:
        """Whether weights have the normalization of a step's chain in them."""
        return step.weight is not None or step.chain in self._here.folded

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        # Alone, it is the head of its chain; behind a layer that stays in float
        # it is a follower that had to run.
        if not self.is_folded(step) and (step.last or not step.follows):
            return self._emit(step, x)
        return x

    def _grid(self, quantizer: Optional[str]) -> Optional[Grid]:
        if quantizer is None or not self.activations.has_range(quantizer):
            return None
        grid = self.activations.host_grid(quantizer)
        if self.engine.rounding is not None:
            grid = grid._replace(rounding=self.engine.rounding)
        return grid

    def _emit(self, step: Step, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        self.ranges.check_output(step, x)
        return self._quantize(step.output, x, step.clip)

    def _quantize(self, quantizer: Optional[str], x: Tensor, clip: Bounds) -> Tensor:
        grid = self._grid(quantizer)
        if grid is None:
            self.ranges.note(quantizer, x)
            return x if clip is None else torch.clamp(x, *clip)
        factor = self.activations.factor(quantizer)
        x = x.float() if factor is None else x.float() / factor
        return self._requantize(grid, x / divisor(grid.scale, x), clip, factor)

    def _requantize(
        self,
        grid: Grid,
        steps: Tensor,
        clip: Bounds,
        factor: Optional[Tensor],
    ) -> Tensor:
        """From real steps of the output's grid to a tensor on it."""
        integers = (
            round_tensor(steps, grid.rounding)
            .clamp_(*grid.integer_limits(clip))
            .float()
        )
        real = integers * grid.scale
        real = real if factor is None else real.mul_(factor)
        return with_integers(real, grid, integers)

    def copy(self, x: Tensor) -> Tensor:
        known, copy = tag_of(x), super().copy(x)
        return copy if known is None else with_integers(copy, *known)

    def overwrite(self, x: Tensor, result: Tensor) -> None:
        known = tag_of(result)
        super().overwrite(x, result)
        if known is not None:
            with_integers(x, *known)

    def _cat(
        self, step: Step, out: Tensor, integers: list[Optional[tuple[Grid, Tensor]]]
    ) -> Tensor:
        grid = self._grid(step.output)
        if grid is not None and all(
            item is not None and item[0] == grid for item in integers
        ):
            return with_integers(out, grid, None)
        return self._emit(step, out)

    def _compute(
        self,
        step: Step,
        op: Op,
        func: Callable,
        args: tuple,
        kwargs: dict,
        integers: list[tuple[Grid, Tensor]],
    ) -> Optional[Tensor]:
        """An operation on integers; None where it is not defined on them."""
        grid = self._grid(step.output)
        (first, x), rest = integers[0], integers[1:]
        if step.kind in ops.WEIGHTED:
            if step.weight is not None:
                layer = self.layer_of(step, first, grid)
            elif step.weight_format is not None:
                layer = self._computed_layer(step, args, kwargs, first, grid)
            else:
                layer = None
            if layer is None:
                return None
            is_deformable = step.kind == ops.DEFORM_CONV
            if is_deformable and self.engine.rounds_samples:
                total = convolve_samples(x, layer.weight, layer.bias, first, *args[3:])
            else:
                args, kwargs = ops.replace_operands(
                    args, kwargs, x.to(layer.weight.dtype), layer.weight, layer.bias
                )
                total = func(*args, **kwargs)
            if not is_deformable or self.engine.rounds_samples:
                total = _exact(total)
            steps = self.engine.scale(total, layer.multiplier, first, grid)
        elif step.kind == ops.ADD:
            if len(rest) != 1 or kwargs.get('alpha', 1) != 1 or len(args) > 2:
                return None
            ((second, y),) = rest
            steps = self.engine.add(x, y, first, second, grid)
        elif step.kind == ops.MATMUL:
            ((second, y),) = rest
            total = func(x.double(), y.double())
            steps = self.engine.sum_products(total, first, second, grid)
        elif op.name == 'mul' and len(rest) == 1:
            ((second, y),) = rest
            steps = self.engine.multiply(x, y, first, second, grid)
        elif self.engine.function(op.name) is not None and not rest:
            steps = self._look_up(op.name, first, x)
            steps = steps / divisor(grid.scale, steps)
        elif self._is_exact(op, first, grid, args, kwargs):
            real = exact_functions.compute(op.name, x, first, *args[1:], **kwargs)
            steps = real.div_(divisor(grid.scale, real))
        elif step.kind == ops.AVERAGE:

            def average(operand: Tensor) -> Tensor:
                given = ops.replace_inputs(op, args, kwargs, [_summable(operand)])
                return func(*given[0], **given[1]).to(operand.dtype)

            pools = 'avg_pool' in op.name and not is_global_pool(
                op.name, x.shape[2:], args[1:], kwargs
            )
            steps = self.engine.average(average, x, first, grid, pools)
        else:
            return None
        factor = self.activations.factor(step.output)
        return self._requantize(grid, steps, step.clip, factor)

    def _compute_real(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        """An operation whose operands are not all integers."""
        if self._opens_channels(step) and self.engine.function(op.name) is not None:
            return self.engine.function(op.name)(args[0].float())
        if self._is_exact(op, None, self._grid(step.output), args, kwargs):
            return exact_functions.compute(op.name, args[0], None, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _is_exact(
        self,
        op: Op,
        given: Optional[Grid],
        grid: Optional[Grid],
        args: tuple,
        kwargs: dict,
    ) -> bool:
        """Whether a call is one of ``exact_functions``."""
        return (
            self.engine.has_exact_functions
            and narrow(given) == given
            and narrow(grid) is not None
            and bool(args)
            and is_exact(op.name, given, args[1:], kwargs)
        )

    def _look_up(self, function: str, given: Grid, x: Tensor) -> Tensor:
        """A function of the engine, computed once for each point of a grid."""
        key = (function, given)
        if key not in self._tables:
            points = torch.arange(given.low, given.high + 1, device=x.device)
            compute = self.engine.function(function)
            self._tables[key] = compute(points.float() * given.scale)
        return self._tables[key][(x - given.low).long()]

    def layer_of(self, step: Step, given: Grid, grid: Grid) -> IntegerLayer:
        """The operands of a layer between two grids, computed once."""
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

    def _make_layer(self, step: Step, given: Grid, grid: Grid) -> IntegerLayer:
        name = step.weight
        integers, bias = self.integer_weight(name), self.integer_bias(name, given)
        scale = self.fallback.grids.step(name)
        multiplier = self.engine.multiplier(scale, given, grid)
        axis = self.state.plan.weights[name].axis
        dtype = (
            torch.float32
            if largest_sum(integers, bias, axis, given) < EXACT_IN_FLOAT32
            else torch.float64
        )
        return IntegerLayer(
            integers.to(dtype), bias.to(dtype), _shaped(multiplier, integers)
        )

    def _computed_layer(
        self, step: Step, args: tuple, kwargs: dict, given: Grid, grid: Grid
    ) -> Optional[IntegerLayer]:
        """A layer whose weight the model has just computed, if it can be one."""
        norm = self.norm_of(step)
        if not folds_norm(step.weight_format, norm):
            return None
        self._here.folded.add(step.chain)
        integers, size, bias = computed_layer(step, args, kwargs, given, norm)
        multiplier = self.engine.multiplier(size, given, grid)
        return IntegerLayer(integers, bias, _shaped(multiplier, integers))

    def norm_of(self, step: Step) -> Optional[_BatchNorm]:
        """The batch normalization in a step's chain."""
        if not step.norm:
            return None
        norm: Any = self.state.executor.root.get_submodule(step.norm)
        return norm


def _shaped(multiplier: Tensor, weight: Tensor) -> Tensor:
    """One number per output channel, to multiply what a weight gives."""
    return multiplier.view((-1,) + (1,) * (weight.dim() - 2))


def _exact(total: Tensor) -> Tensor:
    # An algorithm for convolutions of float64 may be off by a fraction.
    return total.round_() if total.is_cuda else total


def _summable(x: Tensor) -> Tensor:
    # A GPU multiplies a sum by the inverse of the number of its terms.
    return x.double() if x.is_cuda else x

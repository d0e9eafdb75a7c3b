"""Integer: what the deployed engine computes, for validation and test.

Tensors keep flowing in dequantized form, so that any code of the model that
the plan does not know sees ordinary numbers; but each quantized one carries
its integers (less the zero point, in a floating point tensor), and a step
whose operands all carry them computes on them alone. Sums of products of
integers are exact in float32 below 2^24; where a layer can exceed that, it
computes in float64. How the result is scaled to the output's grid is the
engine's affair: see :mod:`~mmquant_jacinto.targets.fixed_point`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from ...plan.plan import Step
from ...quantizers.computed_weights import (
    quantize_computed_weight,
)
from ...quantizers.kernels import integer_kernels
from ...record import ops
from ...record.ops import Op
from ...targets.fixed_point import MEAN, POOL, RESIZE
from ...targets.grid import Bounds, Grid, divisor
from ..corrections.conditioning import compute_grids
from ..in_place_calls import is_in_place
from ..state import State
from . import exact_functions, stable_topk
from .carried_integers import (
    carry,
    integers_of,
    is_promised,
    tag_of,
    with_integers,
)
from .exact_functions import is_exact, is_global_pool, narrow
from .exact_sums import dtype_of_products, exact_sums
from .needed_ranges import NeededRanges
from .ongoing_pass import COMPUTING
from .open_operands import OpenOperands
from .tables import Tables


class Integer(OpenOperands):
    """Computes on integers.

    What is computed once (integer weights, biases, multipliers) is kept until
    a new behaviour is made, which each switch to evaluation does.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._tables = Tables(self.engine)
        if self.engine.has_exact_functions:
            self.instead = stable_topk.INSTEAD
        self.ranges = NeededRanges(state.activations)

    def begin(self) -> None:
        with COMPUTING:
            if not self.fallback.grids.is_computed:
                compute_grids(self.fallback.grids, self.state)
        if self.engine.has_exact_functions and self._here.order is None:
            self._here.order = stable_topk.StableOrder()
            self._here.order.__enter__()

    def end(self) -> None:
        self.ranges.report()
        order, self._here.order = self._here.order, None
        # In a region, where a pass was broken off, it is not there.
        if order is not None and not self._here.contexts:
            order.__exit__(None, None, None)

    def _order_again(self) -> None:
        if self._here.order is not None:
            self._here.order.__enter__()

    def discard(self) -> None:
        self.end()

    def enter_region(self) -> None:
        device = self.activations.low.device.type
        contexts = self._here.contexts
        contexts.append(ExitStack())
        if self._here.order is not None:
            # The region's own mode sees all; two take twice the time of each call.
            self._here.order.__exit__(None, None, None)
            contexts[-1].callback(self._order_again)
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
        self._keep_promises(step, tensors)
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
        elif step.joins is not None and step.kind in ops.WEIGHTED:
            out = self._compute_open(step, func, args, kwargs, integers[0])
            if out is not None:
                return out
        elif step.kind == ops.ADD and step.chain in self.parts_of_layers:
            out = self.add_open(step, op, args, kwargs, integers)
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

    def _keep_promises(self, step: Step, tensors: list[Tensor]) -> None:
        for name, x in zip(step.inputs, tensors):
            if is_promised(x) and self.activations.factor(name) is None:
                grid = self._grid(name)
                if grid is not None:
                    with_integers(x, grid, None)

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

    def _emit(self, step: Step, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        self.ranges.check_output(step, x)
        is_part = step.chain in self.parts_of_layers
        return self._quantize(step.output, x, step.clip, is_part)

    def _quantize(
        self,
        quantizer: Optional[str],
        x: Tensor,
        clip: Bounds,
        behind_layer: bool = False,
    ) -> Tensor:
        grid = self._grid(quantizer)
        if grid is None:
            self.ranges.note(quantizer, x)
            return x if clip is None else torch.clamp(x, *clip)
        factor = self.activations.factor(quantizer)
        steps = self.engine.quantize(x, grid, factor, behind_layer)
        return self._requantize(grid, steps, clip, factor)

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
        if self.is_exact_layer(step, first, grid):
            real = self._compute_open(step, func, args, kwargs, integers[0])
            steps = self.engine.quantize(real, grid)
        elif step.kind in ops.WEIGHTED:
            layer = self.layer_for(step, args, kwargs, first, grid)
            if layer is None:
                return None
            total = self.exact_total(step, func, args, kwargs, layer, first, x)
            sums = self.engine.plain_sums(total, first, grid)
            if sums is not None and layer.offset is None:
                factor = self.activations.factor(step.output)
                return self._requantize(grid, sums, step.clip, factor, layer.multiplier)
            steps = self.engine.scale(
                total, layer.multiplier, first, grid, layer.offset
            )
        elif step.kind == ops.ADD:
            if len(rest) != 1 or kwargs.get('alpha', 1) != 1 or len(args) > 2:
                return None
            steps = self._add(step, integers[0], rest[0], grid)
        elif step.kind == ops.MATMUL:
            ((second, y),) = rest
            dtype = dtype_of_products(x, first, second)
            total = func(x.to(dtype), y.to(dtype))
            steps = self.engine.sum_products(total, first, second, grid)
        elif op.name == 'mul' and len(rest) == 1:
            ((second, y),) = rest
            grids = first, second, grid
            known = self._tables.look_up_product((x, y), grids, step.clip)
            if known is not None:
                return self._emit_known(step, grid, *known)
            steps = self._multiply(x, y, *grids)
        elif self.engine.function(op.name) is not None and not rest:
            known = self._tables.look_up(op.name, first, grid, step.clip, x)
            return self._emit_known(step, grid, *known)
        elif self._is_exact(op, first, grid, args, kwargs):
            real = exact_functions.compute(op.name, x, first, *args[1:], **kwargs)
            steps = real.div_(divisor(grid.scale, real))
        elif step.kind == ops.AVERAGE:

            def average(operand: Tensor) -> Tensor:
                given = ops.replace_inputs(op, args, kwargs, [_summable(operand)])
                return func(*given[0], **given[1]).to(operand.dtype)

            kind = _average_kind(op.name, x.shape[2:], args[1:], kwargs)
            steps = self.engine.average(average, x, first, grid, kind)
        else:
            return None
        factor = self.activations.factor(step.output)
        return self._requantize(grid, steps, step.clip, factor)

    def _add(
        self,
        step: Step,
        one: tuple[Grid, Tensor],
        other: tuple[Grid, Tensor],
        grid: Grid,
    ) -> Tensor:
        """Two quantized tensors in steps of their sum."""
        (first, x), (second, y) = one, other
        terms = self.engine.sum_terms(first, second, grid)
        if terms is not None and integer_kernels.takes_pair(x, y):
            return integer_kernels.add(x, y, terms)
        return self.engine.add(x, y, first, second, grid, self.second_leads(step))

    def _multiply(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        """Two quantized tensors in steps of their product."""
        terms = self.engine.product_terms(first, second, grid)
        if terms is not None and integer_kernels.takes_pair(x, y):
            return integer_kernels.multiply(x, y, terms)
        return self.engine.multiply(x, y, first, second, grid)

    def _emit_known(
        self, step: Step, grid: Grid, integers: Tensor, real: Tensor
    ) -> Tensor:
        factor = self.activations.factor(step.output)
        real = real if factor is None else real.mul_(factor)
        return with_integers(real, grid, integers)

    def _compute_open(
        self,
        step: Step,
        func: Callable,
        args: tuple,
        kwargs: dict,
        integers: Optional[tuple[Grid, Tensor]],
    ) -> Optional[Tensor]:
        """Exact sums as real numbers, for a function that the engine computes on them.

        None where the operand is not on a grid.
        """
        if integers is None or step.kind == ops.DEFORM_CONV:
            return None
        given, x = integers
        layer = self.layer_for(step, args, kwargs, given, None)
        if layer is None:
            return None
        is_exact = self.is_exact_layer(step, given, self._grid(step.output))
        sums = self.total_in_pieces if is_exact else self.exact_total
        total = sums(step, func, args, kwargs, layer, given, x)
        real = total.float() * layer.multiplier
        return real if layer.offset is None else real.add_(layer.offset)

    def _compute_real(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        """An operation whose operands are not all integers."""
        if self._opens_channels(step) and self.engine.function(op.name) is not None:
            return self.engine.function(op.name)(args[0].float())
        if self._is_exact(op, None, self._grid(step.output), args, kwargs):
            return exact_functions.compute(op.name, args[0], None, *args[1:], **kwargs)
        function = self.engine.function(op.name)
        alone = step.joins or step.output is None or step.inputs == (None,)
        if function is not None and alone:
            return function(ops.tensor_inputs(op, args, kwargs)[0])
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
            and is_exact(op.name, args[0], given, args[1:], kwargs)
        )


def _average_kind(name: str, size: Sequence[int], args: tuple, kwargs: dict) -> str:
    if name in exact_functions.RESIZES:
        return RESIZE
    pools = 'avg_pool' in name and not is_global_pool(name, size, args, kwargs)
    return POOL if pools else MEAN


def _summable(x: Tensor) -> Tensor:
    # A GPU multiplies a sum by the inverse of the number of its terms.
    return x.double() if x.is_cuda else x

"""Open operands: calls on a quantized tensor and one that is on no grid."""

from collections import Counter
from typing import Optional

from torch import Tensor

from ...plan.plan import Step
from ...quantizers.kernels import integer_kernels
from ...record import ops
from ...record.ops import Op
from ...targets.grid import Bounds, Grid, round_tensor
from ..state import State
from .carried_integers import with_integers
from .layers import Layers


class OpenOperands(Layers):
    """What an engine computes with a layer whose result is on no grid.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        steps = state.plan.steps.values()
        readers = Counter(name for step in steps for name in step.inputs if name)
        # What the engine computes as part of a layer.
        self.parts_of_layers = {step.joins for step in steps if step.joins}
        # Quantizers of what a layer makes, with its parts or not, and one call reads.
        self._read_once = {
            step.output
            for step in steps
            if (step.weight is not None or step.chain in self.parts_of_layers)
            and readers[step.output] == 1
        }

        computing = (step.inputs for step in steps if step.kind != ops.PASS)
        readers = Counter(name for names in computing for name in names if name)
        self._pairs: dict[str, Optional[Grid]] = {}
        # Quantizers that one call computes on, whoever moves elements for it.
        self._used_once = {name for name, count in readers.items() if count == 1}

    def second_leads(self, step: Step) -> bool:
        """Whether of two operands nothing else reads the second alone."""
        is_alone = [name in self._used_once for name in step.inputs]
        return is_alone == [False, True]

    def add_open(
        self,
        step: Step,
        op: Op,
        args: tuple,
        kwargs: dict,
        integers: list[Optional[tuple[Grid, Tensor]]],
    ) -> Optional[Tensor]:
        """The sum of a quantized tensor and what a layer gives on no grid.

        None where it is another one.
        """
        grid = self._grid(step.output)
        known = [item for item in integers if item is not None]
        raw = [
            x
            for x, item in zip(ops.tensor_inputs(op, args, kwargs), integers)
            if item is None
        ]
        is_sum = kwargs.get('alpha', 1) == 1 and len(args) <= 2
        if grid is None or len(known) != 1 or len(raw) != 1 or not is_sum:
            return None
        ((given, x),) = known
        factor = self.activations.factor(step.output)
        is_only = not self._read_once.isdisjoint(step.inputs)
        pair = self.pair_in(step, given, grid)
        steps = self.engine.add_real(raw[0], x, given, grid, factor, is_only, pair)
        return self._requantize(grid, steps, step.clip, factor)

    def pair_in(self, step: Step, given: Grid, grid: Grid) -> Optional[Grid]:
        """The grid of the pair that a file has in a sum, found once; None for none.

        Args:
            step (Step): Of the sum.
            given (Grid): Of its operand that has one.
            grid (Grid): Of the sum.
        """
        if not step.overwrites:
            return None
        if step.chain not in self._pairs:
            factor = self.activations.factor(step.output)
            found = self.engine.pair_in_sum(given, grid, factor)
            self._pairs[step.chain] = found
        return self._pairs[step.chain]

    def _grid(self, quantizer: Optional[str]) -> Optional[Grid]:
        if quantizer is None or not self.activations.has_range(quantizer):
            return None
        grid = self.activations.host_grid(quantizer)
        if self.engine.rounding is not None:
            grid = grid._replace(rounding=self.engine.rounding)
        return grid

    def _requantize(
        self,
        grid: Grid,
        steps: Tensor,
        clip: Bounds,
        factor: Optional[Tensor],
        multiplier: Optional[Tensor] = None,
    ) -> Tensor:
        """From real steps of the output's grid to a tensor on it.

        Args:
            grid (Grid): Of the output.
            steps (Tensor): The numbers; overwritten.
            clip (tuple, optional): Real bounds of a fused activation.
            factor (Tensor, optional): What its channels are divided by.
            multiplier (Tensor, optional): What the numbers are multiplied by to be
                steps, shaped alike.
        """
        limits = grid.integer_limits(clip)
        if integer_kernels.takes_sums(steps, multiplier):
            integers, real = integer_kernels.requantize(
                steps, multiplier, grid.rounding, limits, grid.scale
            )
        else:
            steps = steps if multiplier is None else steps.mul_(multiplier)
            integers = round_tensor(steps, grid.rounding).clamp_(*limits).float()
            real = integers * grid.scale
        real = real if factor is None else real.mul_(factor)
        return with_integers(real, grid, integers)

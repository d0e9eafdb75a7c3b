"""Arithmetic: how an engine gets from exact sums to integers of the output.

Sums of products of integers are the same on every engine. What differs is how they are
scaled to the grid of the output, in which precision and in what order: one tie rounded
differently spreads through all layers behind it. Each target names a class for it; this
is the base, and all that a unit of fixed point does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple

from torch import Tensor

from .grid import Grid, divisor

# Calls that average elements.
POOL, MEAN, RESIZE = 'pool', 'mean', 'resize'


class SumTerms(NamedTuple):
    """How two quantized tensors add up, in numbers.

    ``x * first + y * second`` in float32; where ``zero`` is given, of stored integers,
    by two fused multiply-adds in float32, the first of ``y`` and ``offset``, rounded to
    even with the output's zero point in.

    Args:
        first (float): What ``x`` is multiplied by.
        second (float): What ``y`` is.
        zero_first (float): Zero point of ``x``.
        zero_second (float): Zero point of ``y``.
        offset (float): All zero points in steps of the output.
        zero (float, optional): Zero point of the output.
    """

    first: float
    second: float
    zero_first: float = 0.0
    zero_second: float = 0.0
    offset: float = 0.0
    zero: float | None = None


class ProductTerms(NamedTuple):
    """How two quantized tensors multiply, in numbers.

    ``x * y * ratio`` in float32, rounded after each; where ``zero`` is given, rounded
    to even with the output's zero point in.

    Args:
        ratio (float): What the product is multiplied by.
        zero (float, optional): Zero point of the output.
    """

    ratio: float
    zero: float | None = None


class FixedPoint:
    """A fixed point unit: real scaling, one rounding; the Jacinto devices.

    Where all scales are powers of two, scaling is exact: a shift.

    Attributes:
        rounding (str, optional): How the engine rounds, whatever the format
            says. None: as the format says.
        has_exact_functions (bool): Whether softmax, normalizations and transposed
            convolutions are exact, as in ``execute.integer.exact_functions``.
        rounds_samples (bool): Whether what a deformable convolution samples is put
            on the grid of its input, see ``execute.integer.sampling``.
        has_real_biases (bool): Whether a bias is added to the scaled sums, as a real
            number; else to the sums themselves, as an integer.
    """

    rounding: str | None = None
    has_exact_functions = False
    rounds_samples = False
    has_real_biases = False

    def quantize(
        self,
        x: Tensor,
        grid: Grid,
        factor: Tensor | None = None,
        behind_layer: bool = False,
    ) -> Tensor:
        """Real numbers in steps of a grid.

        Args:
            x (Tensor): The numbers.
            grid (Grid): Where to.
            factor (Tensor, optional): What its channels are divided by.
            behind_layer (bool): Whether the engine does it as part of a layer.
        """
        x = x.float() if factor is None else x.float() / factor
        return x / divisor(grid.scale, x)

    def add_real(
        self,
        real: Tensor,
        x: Tensor,
        given: Grid,
        grid: Grid,
        factor: Tensor | None = None,
        is_only_reader: bool = False,
        pair: Grid | None = None,
    ) -> Tensor:
        """What a layer gives, and a quantized tensor, in steps of their sum.

        Args:
            real (Tensor): Of the layer, on no grid.
            x (Tensor): Integers less the zero point, on ``given``.
            given (Grid): Of ``x``.
            grid (Grid): Of the sum.
            factor (Tensor, optional): What its channels are divided by.
            is_only_reader (bool): Whether nothing else reads ``x``, which a layer made.
            pair (Grid, optional): Of :meth:`pair_in_sum`, where the file has it.
        """
        return self.quantize(real + x * given.scale, grid, factor)

    def pair_in_sum(
        self, given: Grid, grid: Grid, factor: Tensor | None = None
    ) -> Grid | None:
        """A grid between a layer and a sum that the engine clamps to, and no more.

        A file has it where :attr:`~mmquant_jacinto.plan.plan.Step.overwrites` says so.

        Args:
            given (Grid): Of the other operand.
            grid (Grid): Of the sum.
            factor (Tensor, optional): What the sum's channels are divided by.
        """
        return None

    def multiplier(self, weight_scale: Tensor, given: Grid, grid: Grid) -> Tensor:
        """From the accumulator of a layer to steps of its output: (C,), float32.

        Args:
            weight_scale (Tensor): Of each output channel, float32: (C,).
            given (Grid): Of the input.
            grid (Grid): Of the output.
        """
        unit = weight_scale.double() * given.scale
        return (unit / divisor(grid.scale, unit)).float()

    def scale(
        self,
        total: Tensor,
        multiplier: Tensor,
        given: Grid,
        grid: Grid,
        bias: Tensor | None = None,
    ) -> Tensor:
        """An accumulator in steps of the output; may overwrite it.

        Args:
            total (Tensor): Exact sums, float32 or float64.
            multiplier (Tensor): Of :meth:`multiplier`, shaped to fit.
            given (Grid): Of the input.
            grid (Grid): Of the output.
            bias (Tensor, optional): Real numbers, shaped to fit; of an engine that
                :attr:`has_real_biases`.
        """
        return self.as_multiplied(total, given, grid).mul_(multiplier)

    def as_multiplied(self, total: Tensor, given: Grid, grid: Grid) -> Tensor:
        """The sums in the precision in which :meth:`scale` multiplies them."""
        return total

    # What follows says in numbers, for kernels, what the methods of the same engine do.
    # A class that overrides only these has no such numbers.

    def plain_sums(self, total: Tensor, given: Grid, grid: Grid) -> Tensor | None:
        """The sums that :meth:`scale` multiplies; None where it does more than that.

        Args:
            total (Tensor): Exact sums, float32 or float64.
            given (Grid): Of the input.
            grid (Grid): Of the output.

        Returns:
            Tensor | None: In the precision of the products.
        """
        if type(self).scale is not FixedPoint.scale:
            return None
        return self.as_multiplied(total, given, grid)

    def add(
        self,
        x: Tensor,
        y: Tensor,
        first: Grid,
        second: Grid,
        grid: Grid,
        second_leads: bool = False,
    ) -> Tensor:
        """Sum of two quantized tensors, in steps of the output.

        Args:
            x (Tensor): Integers less the zero point, on ``first``.
            y (Tensor): The same, on ``second``.
            first (Grid): Of ``x``.
            second (Grid): Of ``y``.
            grid (Grid): Of the sum.
            second_leads (bool): Whether nothing else reads ``y``, but something ``x``.
        """
        return x * (first.scale / grid.scale) + y * (second.scale / grid.scale)

    def sum_terms(self, first: Grid, second: Grid, grid: Grid) -> SumTerms | None:
        """:meth:`add` in numbers; None where these do not say it.

        Args:
            first (Grid): Of one operand.
            second (Grid): Of the other.
            grid (Grid): Of the sum.
        """
        if type(self).add is not FixedPoint.add:
            return None
        return SumTerms(first.scale / grid.scale, second.scale / grid.scale)

    def multiply(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        """Product of two quantized tensors, in steps of the output; as :meth:`add`."""
        return self.sum_products(x * y, first, second, grid)

    def product_terms(
        self, first: Grid, second: Grid, grid: Grid
    ) -> ProductTerms | None:
        """:meth:`multiply` in numbers; None where these do not say it."""
        own = type(self).multiply, type(self).sum_products
        if own != (FixedPoint.multiply, FixedPoint.sum_products):
            return None
        return ProductTerms(first.scale * second.scale / grid.scale)

    def sum_products(
        self, total: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        """Exact sums of products of two activations, in steps of the output."""
        return total.mul_(first.scale * second.scale / grid.scale)

    def average(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        given: Grid,
        grid: Grid,
        kind: str,
    ) -> Tensor:
        """Means of elements of a quantized tensor, in steps of the output.

        Args:
            function (Callable): The call, of any tensor in the place of its operand.
            x (Tensor): Its operand: integers less the zero point, on ``given``.
            given (Grid): Of the operand.
            grid (Grid): Of the output.
            kind (str): :data:`POOL`, of parts of maps; :data:`MEAN`, also of whole
                maps; :data:`RESIZE`.
        """
        return function(x) * (given.scale / grid.scale)

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """The engine's own version of a function of one tensor, if it has one.

        It need not be fast: it is called with the points of a grid. Here those of
        :data:`_FUNCTIONS` are rounded once, as no library's float32 is: a point that
        nearly ties then falls the same way on every device.
        """
        return _FUNCTIONS.get(name)


def _sigmoid(x: Tensor) -> Tensor:
    return x.double().sigmoid().float()


_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    'sigmoid': _sigmoid,
    'silu': lambda x: x.float() * _sigmoid(x),
    'tanh': lambda x: x.double().tanh().float(),
    'exp': lambda x: x.double().exp().float(),
}

"""Arithmetic: how an engine gets from exact sums to integers of the output.

Sums of products of integers are the same on every engine. What differs is how
they are scaled to the grid of the output, in which precision and in what order:
one tie rounded differently spreads through all layers behind it. Each engine is
a class here; what it does was measured against the engine itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import torch
from torch import Tensor

from .formats import HALF_EVEN
from .kernels import Grid, divisor


class FixedPoint:
    """A fixed point unit: real scaling, one rounding; the Jacinto devices.

    Where all scales are powers of two, scaling is exact: a shift.

    Attributes:
        rounding (str, optional): How the engine rounds, whatever the format
            says. None: as the format says.
        has_exact_functions (bool): Whether softmax and normalizations are those of
            :mod:`~mmquant_jacinto.exact_functions`.
        rounds_samples (bool): Whether what a deformable convolution samples is put
            on the grid of its input, see :mod:`~mmquant_jacinto.sampling`.
    """

    rounding: str | None = None
    has_exact_functions = False
    rounds_samples = False

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
        self, total: Tensor, multiplier: Tensor, given: Grid, grid: Grid
    ) -> Tensor:
        """An accumulator in steps of the output; may overwrite it.

        Args:
            total (Tensor): Exact sums, float32 or float64.
            multiplier (Tensor): Of :meth:`multiplier`, shaped to fit.
            given (Grid): Of the input.
            grid (Grid): Of the output.
        """
        return total.mul_(multiplier)

    def add(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        """Sum of two quantized tensors, in steps of the output.

        Args:
            x (Tensor): Integers less the zero point, on ``first``.
            y (Tensor): The same, on ``second``.
            first (Grid): Of ``x``.
            second (Grid): Of ``y``.
            grid (Grid): Of the sum.
        """
        return x * (first.scale / grid.scale) + y * (second.scale / grid.scale)

    def multiply(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        """Product of two quantized tensors, in steps of the output; as :meth:`add`."""
        return self.sum_products(x * y, first, second, grid)

    def sum_products(
        self, total: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        """Exact sums of products of two activations, in steps of the output."""
        return total.mul_(first.scale * second.scale / grid.scale)

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """The engine's own version of a function of one tensor, if it has one.

        It need not be fast: it is called with the points of a grid.
        """
        return None


class QdqEngine(FixedPoint):
    """What reads QDQ files; as the QLinear kernels of ONNX Runtime 1.32 on x86.

    All in float32: scales are multiplied, then divided; a fused multiply-add
    rounds once, which float64 reproduces. Beyond 8 bits it has no integer kernels
    and computes on dequantized float32; sums of products there depend on its
    order of adding, and are exact here.
    """

    rounding = HALF_EVEN
    rounds_samples = True

    def multiplier(self, weight_scale: Tensor, given: Grid, grid: Grid) -> Tensor:
        if _is_wide(given, grid):
            return super().multiplier(weight_scale, given, grid)
        unit = weight_scale.float() * given.scale
        return unit / divisor(grid.scale, unit)

    def scale(
        self, total: Tensor, multiplier: Tensor, given: Grid, grid: Grid
    ) -> Tensor:
        if _is_wide(given, grid):
            return super().scale(total, multiplier, given, grid)
        # An accumulator above 2^24 is rounded when it becomes a float32.
        return total.float().mul_(multiplier)

    def add(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        if _is_wide(first, second, grid):
            # Not in place: either may be the one that is broadcast.
            total = x.float() * first.scale + y.float() * second.scale
            return total.div_(divisor(grid.scale, total))
        a, b = _ratio(first.scale, grid.scale), _ratio(second.scale, grid.scale)
        zero_a, zero_b, zero = -first.low, -second.low, -grid.low
        # The zero points are taken into one constant, in this order.
        offset = _float32(b * zero_b)
        offset = _float32(zero - _float32(a * zero_a + offset))
        total = (y.double() + zero_b).mul_(b).add_(offset).float()
        total = ((x.double() + zero_a).mul_(a) + total).float()
        # Rounded with the zero point in: a tie goes to the even stored integer.
        return total.round_().sub_(zero)

    def multiply(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        if _is_wide(first, second, grid):
            product = (x.float() * first.scale) * (y.float() * second.scale)
            return product.div_(divisor(grid.scale, product))
        ratio = _ratio(_float32(first.scale * second.scale), grid.scale)
        # Two roundings to float32, then that to an integer, the zero point in.
        total = (x * y).float().mul_(ratio).sub_(grid.low)
        return total.round_().add_(grid.low)

    def sum_products(
        self, total: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        if _is_wide(first, second, grid):
            return super().sum_products(total, first, second, grid)
        ratio = _ratio(_float32(first.scale * second.scale), grid.scale)
        return total.float().mul_(ratio)

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        return _ONNXRUNTIME_FUNCTIONS.get(name)


class OnnxRuntime(QdqEngine):
    """ONNX Runtime itself, whose files have exact sums in them."""

    has_exact_functions = True


def _is_wide(*grids: Grid) -> bool:
    return any(grid.levels > 256 for grid in grids)


def _float32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _ratio(a: float, b: float) -> float:
    # Correctly rounded: both are float32 numbers.
    return _float32(a / b)


def _multiply_add(x: Tensor, y: Tensor, z: float | Tensor) -> Tensor:
    return (x.double() * y.double() + z).float()


# Coefficients of the rational approximation in MLAS, of odd and even powers.
_NUMERATOR = (
    4.37031012579801e-11,
    1.15627324459942e-07,
    6.08574864600143e-05,
    8.51377133304701e-03,
    2.48287947061529e-01,
)
_DENOMINATOR = (
    6.10247389755681e-13,
    5.76102136993427e-09,
    6.29106785017040e-06,
    1.70198817374094e-03,
    1.16817656904453e-01,
    9.93151921023180e-01,
)


def _sigmoid(x: Tensor) -> Tensor:
    """Sigmoid as MLAS approximates it: ``x P(x²) / Q(x²) + 1/2``, in float32."""
    x = x.float().clamp(-18.0, 18.0)
    square = x * x
    sides = []
    for coefficients in (_NUMERATOR, _DENOMINATOR):
        total = torch.full_like(x, coefficients[0])
        for coefficient in coefficients[1:]:
            total = _multiply_add(total, square, _float32(coefficient))
        sides.append(total)
    return (sides[0] * x / sides[1] + 0.5).clamp_(0.0, 1.0)


def _hardsigmoid(x: Tensor) -> Tensor:
    return (x * _float32(1 / 6) + 0.5).clamp_(0.0, 1.0)


_ONNXRUNTIME_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    'sigmoid': _sigmoid,
    'silu': lambda x: x * _sigmoid(x),
    'hardsigmoid': _hardsigmoid,
    'hardswish': lambda x: x * _hardsigmoid(x),
}

# A target whose devices are not at hand computes as the engine that reads the
# same file does here.
_ENGINES: Mapping[str, type[FixedPoint]] = {
    'jacinto': FixedPoint,
    'onnxruntime': OnnxRuntime,
}


def engine_of(target: str) -> FixedPoint:
    """The arithmetic of a target, by the name that ``quantize.target`` gives."""
    return _ENGINES.get(target, QdqEngine)()

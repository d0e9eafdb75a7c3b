"""ONNX Runtime on x86: how it computes, measured against the engine itself.

S8 weights with a scale for each channel, U8 activations with a zero point: what its
QLinear kernels take. A tie is rounded to the even stored integer, the zero point in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor

from ..registry import QUANT_TARGETS
from .fixed_point import POOL, FixedPoint, ProductTerms, SumTerms
from .formats import HALF_EVEN
from .grid import Grid, divisor
from .preset import AFFINE, PER_CHANNEL, Preset
from .rules import ONNXRUNTIME_RULES
from .target import Target

if TYPE_CHECKING:
    import onnx


class QdqArithmetic(FixedPoint):
    """What the QLinear kernels of ONNX Runtime 1.32 do on x86 with a QDQ file.

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

    def as_multiplied(self, total: Tensor, given: Grid, grid: Grid) -> Tensor:
        # An accumulator above 2^24 is rounded when it becomes a float32.
        return total if _is_wide(given, grid) else total.float()

    def add(
        self,
        x: Tensor,
        y: Tensor,
        first: Grid,
        second: Grid,
        grid: Grid,
        second_leads: bool = False,
    ) -> Tensor:
        if _is_wide(first, second, grid):
            # Not in place: either may be the one that is broadcast.
            total = x.float() * first.scale + y.float() * second.scale
            return total.div_(divisor(grid.scale, total))
        a, b, zero_a, zero_b, offset, _ = _sum_terms(first, second, grid)
        total = (y.double() + zero_b).mul_(b).add_(offset).float()
        total = ((x.double() + zero_a).mul_(a) + total).float()
        # Rounded with the zero point in: a tie goes to the even stored integer.
        return total.round_().add_(grid.low)

    def sum_terms(self, first: Grid, second: Grid, grid: Grid) -> SumTerms | None:
        is_other = type(self).add is not QdqArithmetic.add
        if is_other or _is_wide(first, second, grid):
            return None
        return _sum_terms(first, second, grid)

    def multiply(
        self, x: Tensor, y: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        if _is_wide(first, second, grid):
            product = (x.float() * first.scale) * (y.float() * second.scale)
            return product.div_(divisor(grid.scale, product))
        ratio = _product_terms(first, second, grid).ratio
        # Two roundings to float32, then that to an integer, the zero point in.
        total = (x * y).float().mul_(ratio).sub_(grid.low)
        return total.round_().add_(grid.low)

    def product_terms(
        self, first: Grid, second: Grid, grid: Grid
    ) -> ProductTerms | None:
        is_other = type(self).multiply is not QdqArithmetic.multiply
        if is_other or _is_wide(first, second, grid):
            return None
        return _product_terms(first, second, grid)

    def sum_products(
        self, total: Tensor, first: Grid, second: Grid, grid: Grid
    ) -> Tensor:
        if _is_wide(first, second, grid):
            return super().sum_products(total, first, second, grid)
        ratio = _ratio(_float32(first.scale * second.scale), grid.scale)
        return total.float().mul_(ratio)

    def average(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        given: Grid,
        grid: Grid,
        kind: str,
    ) -> Tensor:
        if kind != POOL or _is_wide(given, grid):
            return super().average(function, x, given, grid, kind)
        # The kernel adds up real numbers, and rounds with the zero point in.
        real = function(x.float() * given.scale)
        steps = real.div_(divisor(grid.scale, real))
        return steps.sub_(grid.low).round_().add_(grid.low)

    def function(self, name: str) -> Callable[[Tensor], Tensor] | None:
        return _FUNCTIONS.get(name)


class OnnxRuntimeArithmetic(QdqArithmetic):
    """ONNX Runtime itself, whose files have exact sums in them."""

    has_exact_functions = True


def _is_wide(*grids: Grid) -> bool:
    return any(grid.levels > 256 for grid in grids)


def _float32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _ratio(a: float, b: float) -> float:
    # Correctly rounded: both are float32 numbers.
    return _float32(a / b)


@lru_cache(maxsize=1024)
def _sum_terms(first: Grid, second: Grid, grid: Grid) -> SumTerms:
    a, b = _ratio(first.scale, grid.scale), _ratio(second.scale, grid.scale)
    zero_a, zero_b, zero = -first.low, -second.low, -grid.low
    # The zero points are taken into one constant, in this order.
    offset = _float32(b * zero_b)
    offset = _float32(zero - _float32(a * zero_a + offset))
    return SumTerms(a, b, zero_a, zero_b, offset, zero)


@lru_cache(maxsize=1024)
def _product_terms(first: Grid, second: Grid, grid: Grid) -> ProductTerms:
    ratio = _ratio(_float32(first.scale * second.scale), grid.scale)
    return ProductTerms(ratio, -grid.low)


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


def _sqrt(x: Tensor) -> Tensor:
    # PyTorch's, in float32 and of many elements, is not always rounded correctly.
    return x.double().sqrt().float()


_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    'sigmoid': _sigmoid,
    'silu': lambda x: x * _sigmoid(x),
    'hardsigmoid': _hardsigmoid,
    'hardswish': lambda x: x * _hardsigmoid(x),
    'sqrt': _sqrt,
    'rsqrt': lambda x: 1.0 / _sqrt(x),
}


@QUANT_TARGETS.register_module(name='onnxruntime')
class OnnxRuntime(Target):
    """The engine that runs here: files are proven in it, bit for bit."""

    preset = Preset(
        weight=PER_CHANNEL, activation=AFFINE, calibration_observer='minmax'
    )
    arithmetic = OnnxRuntimeArithmetic
    integer_clips = True
    backend = 'onnxruntime'
    rules = ONNXRUNTIME_RULES

    def finish(self, model: onnx.ModelProto) -> None:
        # Needs the `export` extra, which a training does without.
        from .rewrites.global_pools import keep_off_the_kernel
        from .rewrites.grouped_convolutions import merge_groups
        from .rewrites.zero_points import separate_zero_points

        keep_off_the_kernel(model)
        merge_groups(model)
        separate_zero_points(model)

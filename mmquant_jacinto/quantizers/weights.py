"""Weights and biases: folding batch normalization, grids, quantization.

Weight quantizers keep no state. A weight's grid follows from the weight (and
from the batch normalization folded into it), so it is computed each time the
weight may have changed, and once where it cannot.
"""

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from ..targets.formats import TensorFormat, integer_bounds
from ..targets.grid import divisor, round_tensor
from .activation_grids import SMALLEST_RANGE, power_of_two_above
from .kernels import native, triton_kernels
from .layers import Layer, channel_rows

CONSTRAIN_ABOVE = 15.0
CONSTRAIN_RATIO = 16.0
CONSTRAIN_MARGIN = 8.0 / 128.0


def to_integers(weight: Tensor, scale: Tensor, fmt: TensorFormat) -> Tensor:
    """Integers of a weight, in a floating point tensor of its shape."""
    return round_tensor(weight / scale, fmt.rounding).clamp_(*integer_bounds(fmt))


def _on_grid(
    weight: Tensor, factor: Optional[Tensor], step: Tensor, fmt: TensorFormat
) -> Tensor:
    """``clamp(round(weight * factor)) * step``; factor and step shaped to multiply it.

    The factor is the inverse of the step where it is None. Ties, which rounding
    differs in, do not occur in training.
    """
    limits = integer_bounds(fmt)
    along_rows = step.shape[:1].numel() == step.numel()
    if along_rows and triton_kernels.takes_rows(weight, step.numel()):
        return triton_kernels.quantize_rows(weight, factor, step, limits)
    if factor is None:
        # A product takes half the time of a quotient.
        factor = step.reciprocal()
    by_row = len(weight) == factor.numel() == len(factor) and weight.is_contiguous()
    if by_row and native.takes(weight):
        return native.quantize_rows(weight, factor, step, limits)
    return (weight * factor).round_().clamp_(*limits).mul_(step)


class Folding(NamedTuple):
    """A frozen normalization in numbers, and the grid of the folded weight.

    Args:
        factor (Tensor): What it multiplies each channel by: (C,).
        bias (Tensor): The folded bias, correction included: (C,).
        step (Tensor): Of the grid of the folded weight: (C,).
        factor_in_steps (Tensor): ``factor / step``: (C,).
        deviation (Tensor): Inverse of the running standard deviation: (C,).
        offset (Tensor): The layer's bias less the running mean: (C,).
    """

    factor: Tensor
    bias: Tensor
    step: Tensor
    factor_in_steps: Tensor
    deviation: Tensor
    offset: Tensor


class _FoldLayer(torch.autograd.Function):
    """Weight and bias with the normalization folded in, the weight on its grid.

    One function that knows the gradients, because a large weight is worth every
    pass over memory, and a small layer every call.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        folding: Folding,
        on_grid: Optional[Tensor],
        weight: Tensor,
        bias: Optional[Tensor],
        norm_weight: Optional[Tensor],
        norm_bias: Optional[Tensor],
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.layer, ctx.folding = layer, folding
        if on_grid is None:
            spread = layer.along_channels
            factor, step = spread(folding.factor_in_steps), spread(folding.step)
            on_grid = _on_grid(weight, factor, step, layer.spec.format)
        # What a function returns gets a place in the graph: what is kept must not.
        return on_grid.detach(), folding.bias.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor, bias_grad: Tensor) -> tuple:
        weight = ctx.saved_tensors[0]
        layer, folding, needs = ctx.layer, ctx.folding, ctx.needs_input_grad
        to_bias = bias_grad * folding.factor if needs[4] else None
        to_weight, to_norm = _fold_gradients(layer, folding, weight, grad, bias_grad)
        given = to_weight, to_bias, to_norm if needs[5] else None, bias_grad
        return None, None, None, *given


def _fold_gradients(
    layer: Layer, folding: Folding, weight: Tensor, grad: Tensor, bias_grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of a layer's weight and of the normalization's: shape of both."""
    # The gradient of a layer's weight is the layer's own, and large.
    in_place = not torch.is_grad_enabled()
    numbers = folding.factor, bias_grad, folding.offset, folding.deviation
    if in_place and layer.spec.axis == 0 and grad.stride() == weight.stride():
        if native.takes(weight) and native.takes(grad) and weight.is_contiguous():
            return grad, native.fold_gradient(grad, weight, *numbers)
        rows = len(folding.factor)
        if all(triton_kernels.takes_rows(x, rows) for x in (weight, grad)):
            return grad, triton_kernels.fold_gradient(grad, weight, *numbers)
    # The folded weight is weight * norm_weight * deviation, the folded bias
    # offset * norm_weight * deviation + norm_bias.
    dots = channel_rows(layer, grad * weight).sum(1)
    to_norm = (dots + bias_grad * folding.offset) * folding.deviation
    spread = layer.along_channels(folding.factor)
    return grad.mul_(spread) if in_place else grad * spread, to_norm


def fold_layer(
    layer: Layer, folding: Folding, on_grid: Optional[Tensor] = None
) -> tuple[Tensor, Tensor]:
    """Folds a frozen normalization into a layer and fake-quantizes its weight.

    Args:
        layer (Layer): With a normalization that uses running statistics.
        folding (Folding): Computed from the layer's present parameters.
        on_grid (Tensor, optional): The weight, folded and quantized, where it is
            there already.

    Returns:
        Tuple[Tensor, Tensor]: Weight on its grid, and bias: (C,). Gradients
        are those without the rounding.
    """
    norm = layer.norm
    return _FoldLayer.apply(
        layer, folding, on_grid, layer.weight, layer.bias, norm.weight, norm.bias
    )


def quantize_weight(weight: Tensor, step: Tensor, fmt: TensorFormat) -> Tensor:
    """Fake-quantizes a weight.

    Args:
        weight (Tensor): The weight.
        step (Tensor): Of its grid, shaped to multiply the weight.
        fmt (TensorFormat): Its format.

    Returns:
        Tensor: Shape of the weight. Its gradient is that of the weight,
        without the rounding.
    """
    with torch.no_grad():
        on_grid = _on_grid(weight, None, step, fmt)
    return straight_through(weight, on_grid)


def straight_through(weight: Tensor, on_grid: Tensor) -> Tensor:
    """A weight on its grid, with the gradient of the weight.

    Args:
        weight (Tensor): The weight.
        on_grid (Tensor): What it is quantized, laid out as it.

    Returns:
        Tensor: Shape of the weight.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return on_grid
    # The weight in the graph, with other values. A function of our own takes ten times
    # as long, twice for each layer of each step.
    out = weight.view_as(weight)
    out.data = on_grid
    return out


def step_of(weight: Tensor, axis: int, fmt: TensorFormat) -> Tensor:
    """Step of the grid of a weight that is no parameter.

    Args:
        weight (Tensor): As the model computed it.
        axis (int): Its output channel axis.
        fmt (TensorFormat): Its format.

    Returns:
        Tensor: Shaped to multiply the weight.
    """
    magnitude = weight.detach().abs()
    if fmt.per_channel:
        dims = [d for d in range(weight.dim()) if d != axis]
        reach = magnitude.amax(dims, keepdim=True)
    else:
        reach = magnitude.amax().view((1,) * weight.dim())
    reach = reach.clamp_(min=SMALLEST_RANGE)
    high = integer_bounds(fmt)[1]
    if fmt.power_of_two:
        return power_of_two_above(reach) / (high + 1)
    return reach / divisor(high, reach)


def bias_limits(bits: int) -> tuple[float, float]:
    """Smallest and largest integer of a bias of ``bits`` bits."""
    return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1


def quantize_bias(bias: Tensor, step: Any, bits: Optional[int]) -> Tensor:
    """Bias in units of ``step`` (input scale times weight scale).

    Returns:
        Tensor: Integers in a tensor of ``bias``'s dtype, saturated to
        ``bits`` bits; None: as large as it is.
    """
    integers = (bias / step).round()
    return integers if bits is None else integers.clamp_(*bias_limits(bits))


@torch.no_grad()
def constrain_weights(layer: Layer) -> bool:
    """Clamps outliers of a weight in place.

    Where the largest magnitude of the folded weight exceeds both 15 and 16
    times the median magnitude, the weight is clamped to the power of two of
    16 times the median, less a margin of 8/128 of it.

    Returns:
        bool: Whether there was anything to clamp.
    """
    weight = layer.weight
    factor = None
    folded = weight
    if layer.norm is not None and layer.norm.running_var is not None:
        factor = layer.along_channels(layer.fold_factor())
        folded = weight * factor
    magnitude = folded.abs()
    largest, median = magnitude.max(), magnitude.median()
    if not (largest > CONSTRAIN_ABOVE and largest > CONSTRAIN_RATIO * median):
        return False
    if median <= SMALLEST_RANGE:
        # Most of it is zero: what is left are no outliers.
        return False
    limit = power_of_two_above((CONSTRAIN_RATIO * median).clamp(min=SMALLEST_RANGE)) * (
        1 - CONSTRAIN_MARGIN
    )
    folded = folded.clamp(-limit, limit)
    if factor is not None:
        usable = factor.abs() > SMALLEST_RANGE
        folded = torch.where(
            usable,
            folded / torch.where(usable, factor, torch.ones_like(factor)),
            weight,
        )
    layer.write(folded)
    return True

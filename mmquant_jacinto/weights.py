"""Weights and biases: folding batch normalization, grids, quantization.

Weight quantizers keep no state. A weight's grid follows from the weight (and
from the batch normalization folded into it), so it is computed each time the
weight may have changed, and once where it cannot.
"""

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from .activations import SMALLEST_RANGE, power_of_two_above
from .formats import TensorFormat, integer_bounds
from .kernels import round_tensor
from .plan import WeightSpec

# No channel's grid may be finer than the tensor's by more than this: an
# accumulator has to hold them all.
MAX_CHANNEL_RATIO = 256.0
CONSTRAIN_ABOVE = 15.0
CONSTRAIN_RATIO = 16.0
CONSTRAIN_MARGIN = 8.0 / 128.0


class Layer(NamedTuple):
    """The modules and parameters behind a weight quantizer.

    Args:
        spec (WeightSpec): From the plan.
        owner (nn.Module): The module that has the weight.
        bias_owner (nn.Module, optional): The module that has the bias.
        norm (nn.Module, optional): Batch normalization folded into it.
    """

    spec: WeightSpec
    owner: nn.Module
    bias_owner: Optional[nn.Module]
    norm: Optional[nn.Module]

    @classmethod
    def find(cls, root: nn.Module, spec: WeightSpec) -> 'Layer':
        """Resolves the names in ``spec`` below ``root``."""

        def owner(name: Optional[str]) -> Optional[nn.Module]:
            return None if name is None else root.get_submodule(
                name.rpartition('.')[0])

        return cls(spec, owner(spec.weight), owner(spec.bias),
                   None if spec.norm is None else root.get_submodule(
                       spec.norm))

    # Looked up at each use: EMA, SyncBN conversion and the like may replace
    # parameters of a module, but not the modules.
    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.owner, self.spec.weight.rpartition('.')[2])

    @property
    def bias(self) -> Optional[nn.Parameter]:
        if self.spec.bias is None:
            return None
        return getattr(self.bias_owner, self.spec.bias.rpartition('.')[2])

    @property
    def parameters(self) -> tuple[Optional[Tensor], ...]:
        """Tuple[Tensor | None]: All tensors that the folded layer uses."""
        norm = self.norm
        if norm is None:
            return self.weight, self.bias
        return (self.weight, self.bias, norm.weight, norm.bias,
                norm.running_mean, norm.running_var)

    def check(self) -> None:
        """Raises AttributeError where the model lacks a parameter."""
        assert self.parameters[0] is not None

    @property
    def norm_is_live(self) -> bool:
        """Whether the normalization uses the statistics of the batch."""
        return self.norm is not None and (
            self.norm.training or self.norm.running_var is None)

    def fold_factor(self) -> Tensor:
        """Factor per output channel that the normalization puts on it."""
        norm = self.norm
        factor = torch.rsqrt(norm.running_var + norm.eps)
        return factor if norm.weight is None else factor * norm.weight

    def along_channels(self, values: Tensor) -> Tensor:
        """Shapes one value per output channel to multiply the weight."""
        weight, axis = self.weight, self.spec.axis
        if axis == 1 and weight.shape[1] != values.numel():
            # Grouped transposed convolution: (in, out / groups, ...), group
            # after group along the input axis.
            groups = values.numel() // weight.shape[1]
            values = values.view(groups, -1).repeat_interleave(
                weight.shape[0] // groups, dim=0)
            return values.view(values.shape + (1, ) * (weight.dim() - 2))
        shape = [1] * weight.dim()
        shape[axis] = -1
        return values.view(shape)

    def folded_weight(self) -> Tensor:
        """The weight with the frozen normalization folded in."""
        if self.norm is None:
            return self.weight
        return self.weight * self.along_channels(self.fold_factor())

    def folded_bias(self) -> Optional[Tensor]:
        """The bias with the frozen normalization folded in: (C,)."""
        bias, norm = self.bias, self.norm
        if norm is None:
            return bias
        mean = norm.running_mean
        bias = (-mean if bias is None else bias - mean) * self.fold_factor()
        return bias if norm.bias is None else bias + norm.bias

    def scale(self) -> Tensor:
        """Step of the grid of the folded weight, see :func:`weight_scale`."""
        factor = None if self.norm is None else self.fold_factor()
        return weight_scale(self.weight, self.spec.format, self.spec.axis, factor)


def weight_scale(
    weight: Tensor, fmt: TensorFormat, axis: int, factor: Optional[Tensor] = None
) -> Tensor:
    """Step of a weight's grid.

    Args:
        weight (Tensor): The weight.
        fmt (TensorFormat): Its format.
        axis (int): Output channel axis.
        factor (Tensor, optional): What each output channel will be multiplied
            by, (C,).

    Returns:
        Tensor: One element, or one per channel shaped to multiply the weight.
    """
    if factor is None and not fmt.per_channel:
        low, high = torch.aminmax(weight)
        reach = torch.maximum(-low, high)
    else:
        reach = channel_reach(weight, axis, factor)
        largest = reach.amax()
        if fmt.per_channel:
            reach = torch.maximum(reach, largest / MAX_CHANNEL_RATIO)
            reach = reach.view([-1 if d == axis else 1 for d in range(weight.dim())])
        else:
            reach = largest
    reach = reach.clamp(min=SMALLEST_RANGE)
    low, high = integer_bounds(fmt)
    if fmt.power_of_two:
        return power_of_two_above(reach) / (high + 1)
    return reach / high


def channel_reach(weight: Tensor, axis: int, factor: Optional[Tensor]) -> Tensor:
    """Largest magnitude in each output channel of the scaled weight: (C,)."""
    if axis == 1:
        groups = 1 if factor is None else factor.numel() // weight.shape[1]
        # (in, out / groups, ...) holds group after group along its first axis.
        weight = weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2)
        weight = weight.flatten(0, 1)
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    reach = torch.maximum(-low, high)
    return reach if factor is None else reach * factor.abs()


def to_integers(weight: Tensor, scale: Tensor, fmt: TensorFormat) -> Tensor:
    """Integers of a weight, in a floating point tensor of its shape."""
    return round_tensor(weight / scale, fmt.rounding).clamp_(
        *integer_bounds(fmt))


class _QuantizeWeight(torch.autograd.Function):
    """Puts a weight on its grid; the gradient passes straight through.

    With a factor the grid is that of ``weight * factor``, and the result is
    divided by the factor again: the weight of a convolution that a live
    batch normalization follows.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: Optional[Tensor],
                scale: Tensor, fmt: TensorFormat) -> Tensor:
        if factor is None:
            return to_integers(weight, scale, fmt).mul_(scale)
        # A channel that its normalization multiplies by zero (as residual
        # branches start) has no grid; it gets one for the weight as it is.
        low, high = torch.aminmax(weight)
        unscaled = torch.maximum(-low, high) / integer_bounds(fmt)[1]
        step = torch.where(
            factor.abs() > SMALLEST_RANGE,
            scale / factor,
            unscaled.clamp_(min=SMALLEST_RANGE),
        )
        return to_integers(weight, step, fmt).mul_(step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad, None, None, None


def quantize_weight(weight: Tensor, scale: Tensor, fmt: TensorFormat,
                    factor: Optional[Tensor] = None) -> Tensor:
    """Fake-quantizes a weight, see :class:`_QuantizeWeight`."""
    return _QuantizeWeight.apply(weight, factor, scale, fmt)


def bias_limits(bits: int) -> tuple[float, float]:
    """Smallest and largest integer of a bias of ``bits`` bits."""
    return -2.0**(bits - 1), 2.0**(bits - 1) - 1


def widen_for_bias(scale: Tensor, bias: Tensor, input_scale: Any,
                   bits: int, fmt: TensorFormat) -> Tensor:
    """Coarsens a weight's grid until the bias fits the accumulator.

    Args:
        scale (Tensor): Step of the weight's grid, one or one per channel.
        bias (Tensor): Folded bias, (C,).
        input_scale (float | Tensor): Step of the input's grid.
        bits (int): Width of the bias.
        fmt (TensorFormat): Of the weight.

    Returns:
        Tensor: Shape of ``scale``.
    """
    high = bias_limits(bits)[1]
    need = bias.abs() / (high * input_scale)
    need = need.view(scale.shape) if scale.numel() > 1 else need.amax()
    if fmt.power_of_two:
        need = power_of_two_above(need.clamp(min=SMALLEST_RANGE**2))
    return torch.maximum(scale, need)


def quantize_bias(bias: Tensor, step: Any, bits: int) -> Tensor:
    """Bias in units of ``step`` (input scale times weight scale).

    Returns:
        Tensor: Integers in a tensor of ``bias``'s dtype, saturated to
        ``bits`` bits.
    """
    return torch.clamp((bias / step).round(), *bias_limits(bits))


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
    if not (largest > CONSTRAIN_ABOVE
            and largest > CONSTRAIN_RATIO * median):
        return False
    limit = power_of_two_above((CONSTRAIN_RATIO * median).clamp(
        min=SMALLEST_RANGE)) * (1 - CONSTRAIN_MARGIN)
    folded = folded.clamp(-limit, limit)
    if factor is not None:
        usable = factor.abs() > SMALLEST_RANGE
        folded = torch.where(usable, folded / torch.where(
            usable, factor, torch.ones_like(factor)), weight)
    weight.copy_(folded)
    return True

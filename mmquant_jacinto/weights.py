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
            return None if name is None else root.get_submodule(name.rpartition('.')[0])

        return cls(
            spec,
            owner(spec.weight),
            owner(spec.bias),
            None if spec.norm is None else root.get_submodule(spec.norm),
        )

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
        return (
            self.weight,
            self.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
        )

    def check(self) -> None:
        """Raises AttributeError where the model lacks a parameter."""
        assert self.parameters[0] is not None

    @property
    def norm_is_live(self) -> bool:
        """Whether the normalization uses the statistics of the batch."""
        return self.norm is not None and (
            self.norm.training or self.norm.running_var is None
        )

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
                weight.shape[0] // groups, dim=0
            )
            return values.view(values.shape + (1,) * (weight.dim() - 2))
        shape = [1] * weight.dim()
        shape[axis] = -1
        return values.view(shape)

    def folded(self) -> tuple[Tensor, Optional[Tensor]]:
        """Weight and bias (C,) with the frozen normalization folded in."""
        factor, bias = self.fold()
        if factor is None:
            return self.weight, bias
        return self.weight * factor, bias

    def fold(self) -> tuple[Optional[Tensor], Optional[Tensor]]:
        """What the frozen normalization makes of weight and bias.

        Returns:
            tuple: Factor, shaped to multiply the weight, and bias (C,).
        """
        bias, norm = self.bias, self.norm
        if norm is None:
            return None, bias
        factor = self.fold_factor()
        mean = norm.running_mean
        bias = (-mean if bias is None else bias - mean) * factor
        if norm.bias is not None:
            bias = bias + norm.bias
        return self.along_channels(factor), bias


def channel_reach(layer: Layer) -> Tensor:
    """Largest magnitude of a weight in each output channel: (C,)."""
    weight = layer.weight
    if layer.spec.axis == 1:
        # (in, out / groups, ...) holds group after group along its first axis.
        groups = layer.spec.channels // weight.shape[1]
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    weight = weight.flatten(1)
    # aminmax over an axis takes ten times as long as both of these.
    return torch.maximum(weight.amax(1), -weight.amin(1))


def to_integers(weight: Tensor, scale: Tensor, fmt: TensorFormat) -> Tensor:
    """Integers of a weight, in a floating point tensor of its shape."""
    return round_tensor(weight / scale, fmt.rounding).clamp_(*integer_bounds(fmt))


def _on_grid(scaled: Tensor, step: Tensor, fmt: TensorFormat) -> Tensor:
    """Weights in steps of their grid to weights on it, in place."""
    # Ties, which rounding differs in, do not occur in training.
    return scaled.round_().clamp_(*integer_bounds(fmt)).mul_(step)


class _QuantizeWeight(torch.autograd.Function):
    """Puts a weight on a grid; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, fmt: TensorFormat) -> Tensor:
        return _on_grid(weight / step, step, fmt)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad, None, None


class _FoldWeight(torch.autograd.Function):
    """Multiplies a weight by a factor per channel and puts it on a grid.

    In one function, because a large weight is worth every pass over memory.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, factor: Tensor, step: Tensor, fmt: TensorFormat
    ) -> Tensor:
        ctx.save_for_backward(weight, factor)
        return _on_grid(weight * (factor / step), step, fmt)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        weight, factor = ctx.saved_tensors
        to_weight = to_factor = None
        if ctx.needs_input_grad[0]:
            to_weight = grad * factor
        if ctx.needs_input_grad[1]:
            if factor.shape[0] == factor.numel():
                # A product for each channel, without one the size of the weight.
                rows = grad.flatten(1)[:, None]
                to_factor = torch.bmm(rows, weight.flatten(1)[..., None])
                to_factor = to_factor.view_as(factor)
            else:
                to_factor = (grad * weight).sum_to_size(factor.shape)
        return to_weight, to_factor, None, None


def quantize_weight(
    weight: Tensor, step: Tensor, fmt: TensorFormat, factor: Optional[Tensor] = None
) -> Tensor:
    """Fake-quantizes a weight.

    Args:
        weight (Tensor): The weight, folded or not.
        step (Tensor): Of its grid, shaped to multiply the weight.
        fmt (TensorFormat): Its format.
        factor (Tensor, optional): What the normalization that is folded in
            multiplies each channel by, shaped to multiply the weight.

    Returns:
        Tensor: Shape of the weight. Its gradient is that of the weight, and of the
        factor, without the rounding.
    """
    if factor is None:
        return _QuantizeWeight.apply(weight, step, fmt)
    return _FoldWeight.apply(weight, factor, step, fmt)


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
    weight.copy_(folded)
    return True

"""Layers whose weight the model computes from its parameters in each pass."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..plan.plan import Step
from ..record import ops
from ..targets.formats import TensorFormat
from ..targets.grid import Grid
from .layers import fold_bias, norm_factor
from .weights import quantize_bias, quantize_weight, step_of, to_integers


class ComputedLayer(NamedTuple):
    """The operands of such a layer, as an integer engine takes them.

    Args:
        weight (Tensor): Integers, float64.
        size (Tensor): Step of their grid, of each output channel or of all: (C,) or
            (1,), float32.
        bias (Tensor, optional): In units of the input's step times ``size``: (C,).
    """

    weight: Tensor
    size: Tensor
    bias: Optional[Tensor]


def quantize_computed_weight(
    step: Step, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    """The call of a layer, on its computed weight put on a grid."""
    x, weight, bias = ops.layer_operands(args, kwargs)
    size = step_of(weight.float(), _axis(step), step.weight_format)
    quantized = quantize_weight(weight.float(), size, step.weight_format)
    return ops.replace_operands(args, kwargs, x, quantized.to(weight.dtype), bias)


def folds_norm(fmt: TensorFormat, norm: Optional[_BatchNorm]) -> bool:
    """Whether a normalization becomes part of a computed weight.

    With a scale for each channel the integers are those without it, which is what a
    training sees; with one for all they would be others.
    """
    return norm is None or (
        fmt.per_channel and not norm.training and norm.running_var is not None
    )


@torch.no_grad()
def computed_layer(
    step: Step,
    args: tuple,
    kwargs: dict,
    given: Optional[Grid],
    norm: Optional[_BatchNorm],
) -> ComputedLayer:
    """The integer operands of a call, with its normalization folded in.

    Args:
        step (Step): Of the layer.
        args (tuple): Of its call.
        kwargs (dict): The same.
        given (Grid, optional): Of its input. None: the bias stays in real numbers.
        norm (nn.Module, optional): Frozen batch normalization behind it.
    """
    _, weight, bias = ops.layer_operands(args, kwargs)
    axis, weight = _axis(step), weight.float()
    if norm is not None:
        factor = norm_factor(norm)
        bias = fold_bias(bias, norm, factor)
        shape = [1] * weight.dim()
        shape[axis] = -1
        weight = weight * factor.view(shape)
    size = step_of(weight, axis, step.weight_format)
    integers = to_integers(weight, size, step.weight_format).double()
    size = size.flatten()
    if bias is not None and given is not None:
        bias = quantize_bias(bias.double(), size.double() * given.scale, None)
    return ComputedLayer(integers, size, bias)


def _axis(step: Step) -> int:
    return 1 if step.kind == ops.CONV_TRANSPOSE else 0

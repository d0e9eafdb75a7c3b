"""Analytic bias correction: the mean error of rounded weights, without a second pass.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction
(arXiv 1906.04721), section 4.2, with measured means: the error of a weight times the
mean of what it is multiplied with is subtracted from the bias.
"""

from typing import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ...plan.plan import Step
from ...quantizers.layers import Layer, channel_rows
from ...quantizers.observers import is_distributed
from ...quantizers.weight_grids import WeightGrids
from ...quantizers.weights import to_integers
from ...record import ops
from ..state import State
from .conditioning import compute_grids


def mean_inputs(
    layer: Layer, step: Step, func: Callable, args: tuple, kwargs: dict
) -> Tensor:
    """Means of what each weight of a layer is multiplied with, in one call.

    Over images and positions of the output, so what a padding puts at the border is
    in it: on a map of 3 x 3 that is most of what a 3 x 3 kernel sees. The paper
    neglects it.

    Args:
        layer (Layer): The layer.
        step (Step): Of the call.
        func (Callable): The convolution or linear function that is called.
        args (tuple): Its positional arguments.
        kwargs (dict): Its keyword arguments.

    Returns:
        Tensor: float32: (G, n), for the n weights of any output channel of each of
        G groups; NaN where the layer was given nothing.
    """
    x, weight, _ = ops.layer_operands(args, kwargs)
    # All channels of a group see the same: one stands for them.
    if layer.spec.axis == 1:
        groups = layer.spec.channels // weight.shape[1]
        one = weight[:, :1]
    else:
        groups = x.shape[1 - weight.dim()] // weight.shape[1]
        one = weight[:: len(weight) // groups]
    x = x.detach()
    # Mean over images first: all that follows is linear.
    if step.kind == ops.LINEAR:
        x = x.reshape(-1, x.shape[-1]).mean(0, keepdim=True)
    elif x.dim() == weight.dim():
        x = x.mean(0, keepdim=True)
    one = torch.zeros_like(one).requires_grad_()
    args, kwargs = ops.replace_operands(args, kwargs, x, one, None)
    # A sum of outputs is linear in a weight; its derivative is what multiplies it.
    with torch.enable_grad():
        out = func(*args, **kwargs)
        (total,) = torch.autograd.grad(out.sum(), one)
    return total.float().reshape(groups, -1) * (groups / out.numel())


class MeanInputs:
    """Averages what :func:`mean_inputs` measured, over batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, means: dict[str, Tensor]) -> None:
        """Adds a batch; layers where it is not finite are left out.

        Args:
            means (Dict[str, Tensor]): By weight quantizer: (G, n).
        """
        for name, mean in means.items():
            finite = mean.isfinite().all()
            mean = torch.where(finite, mean, torch.zeros_like(mean)).double()
            self._sums[name] = self._sums.get(name, 0.0) + mean
            self._counts[name] = self._counts.get(name, 0.0) + finite.double()

    @torch.no_grad()
    def correction(self, state: State) -> Tensor:
        """What to add to the biases of all layers.

        Every process must call it equally often.

        Args:
            state (State): Of the quantized model.

        Returns:
            Tensor: All layers' channels end to end, float32.
        """
        grids = WeightGrids(state.plan, state.layers, state.activations)
        compute_grids(grids, state)
        shifts, counts = [], []
        for name, layer in state.layers.items():
            if name in self._sums:
                error = channel_rows(layer, _rounding_error(layer, grids.step(name)))
                sums = self._sums[name]
                grouped = error.double().unflatten(0, (len(sums), -1))
                shifts.append((grouped * sums[:, None]).sum(2).flatten())
                counts.append(self._counts[name].expand(len(error)))
            else:
                nothing = state.bias_correction.new_zeros(layer.spec.channels).double()
                shifts.append(nothing)
                counts.append(nothing)
        total = torch.stack([torch.cat(shifts), torch.cat(counts)])
        if is_distributed():
            dist.all_reduce(total)
        return -(total[0] / total[1].clamp(min=1)).float()


def _rounding_error(layer: Layer, step: Tensor) -> Tensor:
    """Quantized less float weight, both folded: shape of the weight."""
    folded, spread = layer.folded()[0], layer.along_channels
    integers = to_integers(layer.scaled(folded), spread(step), layer.spec.format)
    quantized = layer.unscaled(integers.mul_(spread(step)))
    if layer.correction is not None:
        folded = folded / spread(layer.correction)
    return quantized.sub_(folded)

"""Gradients of weights whose normalization is frozen: no larger than the weights.

Normalization makes the size of a weight, and what it adds to the mean, of no account;
frozen, it does so no more, and a rate that was found with it may be a thousand times
too large for one channel (of a first layer, say, that reads images of 0 to 255). So the
gradient of a channel counts as no larger than its weights: adaptive gradient clipping,
for networks without normalization (Brock et al., arXiv 2102.06171).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..quantizers.layers import Layer


@torch.no_grad()
def clip_gradients(layers: Sequence[Layer]) -> None:
    """Clips the gradients of layers, by channel; those of normalization as a whole.

    Args:
        layers (Sequence[Layer]): What has no batch normalization stays as it is.
    """
    found = {
        id(parameter): parameter
        for layer in layers
        if layer.norm is not None
        for parameter in layer.parameters
        if parameter is not None and parameter.grad is not None
    }
    kernels = [x for x in found.values() if x.dim() > 1]
    vectors = [x for x in found.values() if x.dim() <= 1]
    for parameters, norms in ((kernels, _row_norms), (vectors, _norms)):
        if not parameters:
            continue
        grads: Any = [parameter.grad for parameter in parameters]
        # All at once: on an accelerator each call costs more than its work.
        shares = norms(parameters) / norms(grads)
        shares = shares.nan_to_num(1.0).clamp(max=1.0)
        sizes = [len(grad) if grad.dim() > 1 else 1 for grad in grads]
        parts = zip(shares.split(sizes), grads)
        torch._foreach_mul_(
            grads, [p.view(-1, *(1,) * (g.dim() - 1)) for p, g in parts]
        )


def _row_norms(tensors: list[Tensor]) -> Tensor:
    """Norms of the first dimension's rows, end to end: (C,)."""
    return torch.cat(
        [torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim()))) for x in tensors]
    )


def _norms(tensors: list[Tensor]) -> Tensor:
    """Norm of each tensor: (T,)."""
    return torch.stack(torch._foreach_norm(tensors))

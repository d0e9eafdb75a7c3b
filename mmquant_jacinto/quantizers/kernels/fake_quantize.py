"""Fake quantization of activations: one function, one kernel per device.

Measured on a CPU, 2 M floats, two threads: ATen's ``fake_quantize_per_tensor_affine``
is scalar there and takes 5 ms; a chain of vectorized ops 0.8; the kernel in C
(:mod:`native`) 0.3, or 0.2 in place, and less than the chain in the backward pass. On
CUDA it is a kernel in Triton (:mod:`triton_kernels`), and the chain where that is not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...targets.formats import HALF_AWAY, HALF_UP
from ...targets.grid import Bounds, Grid, round_tensor
from . import native, triton_kernels

# Elements up to which a GPU is done sooner than it is told.
SMALL = 2**20


_HALF = torch.tensor(0.5)


def _quantize_(x: Tensor, grid: Grid) -> Tensor:
    """Puts clamped values on a grid, in place."""
    inverse = 1.0 / grid.scale
    if grid.rounding == HALF_UP and not isinstance(inverse, Tensor) and x.is_cpu:
        # One pass over memory less than scaling, then rounding.
        x = torch.add(_HALF, x, alpha=inverse, out=x).floor_()
    else:
        x = round_tensor(x.mul_(inverse), grid.rounding)
    return x.mul_(grid.scale)


class _FakeQuantizeFused(torch.autograd.Function):
    """One pass over memory; keeps a byte for each element, not the element.

    And not even that where no gradient is wanted. ``kernels`` is :mod:`native`, or
    :mod:`triton_kernels` on a GPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernels: Any,
        grid: Grid,
        bounds: Bounds,
        in_place: bool,
        has_grad: bool,
    ) -> Tensor:
        out = x if in_place else torch.empty_like(x)
        inside = torch.empty_like(x, dtype=torch.uint8) if has_grad else None
        kernels.fake_quantize(x, out, inside, grid, bounds)
        if in_place:
            ctx.mark_dirty(x)
        if has_grad:
            ctx.kernels = kernels
            ctx.save_for_backward(inside)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (inside,) = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
            or not ctx.kernels.takes(grad)
            or grad.stride() != inside.stride()
        ):
            return grad * inside, None, None, None, None, None
        return ctx.kernels.mask(grad, inside), None, None, None, None, None


class _FakeQuantize(torch.autograd.Function):
    """On an accelerator without Triton, where the limits are tensors too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(x, low, high)
        # ATen's own kernel would make numbers of NaN.
        return _quantize_(torch.clamp(x, low, high), grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, low, high = ctx.saved_tensors
        return grad * ((x > low) & (x < high)), None, None, None


def _fake_quantize_small(x: Tensor, grid: Grid, bounds: Bounds) -> Tensor:
    """The same with one more pass over memory, and no function of ours in the graph.

    The gradient is that of the product with what is 1 inside the limits.
    """
    on_grid, inside = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    triton_kernels.fake_quantize(x, on_grid, inside, grid, bounds)
    out = x * inside
    out.data = on_grid
    return out


def fake_quantize(
    x: Tensor, grid: Grid, bounds: Bounds = None, in_place: bool = False
) -> Tensor:
    """Puts ``x`` on a grid, in floating point.

    The gradient is straight through (Bengio et al., arXiv 1308.3432), zero
    where the value was clipped, as in PACT (arXiv 1805.06085).

    Args:
        x (Tensor): Any shape, floating point.
        grid (Grid): Where to.
        bounds (tuple, optional): Real ``(low, high)`` of an activation fused
            into the quantizer, each None where it is open.
        in_place (bool): Whether ``x`` may be overwritten, because nothing else
            reads it. Defaults to False.

    Returns:
        Tensor: Shape and dtype of ``x``.
    """
    dtype = x.dtype
    has_grad = torch.is_grad_enabled() and x.requires_grad
    # Autograd cannot change a view in a function of ours, nor a leaf.
    changes = in_place and not (has_grad and (x._is_view() or x.is_leaf))
    if isinstance(grid.scale, Tensor) and triton_kernels.takes(x):
        if has_grad and x.numel() <= SMALL:
            return _fake_quantize_small(x, grid, bounds)
        return _FakeQuantizeFused.apply(
            x, triton_kernels, grid, bounds, changes, has_grad
        )
    if dtype != torch.float32:
        # Half precision cannot hold the integers of 16 bits.
        x = x.float()
    if grid.rounding != HALF_AWAY and native.takes(x):
        out = _FakeQuantizeFused.apply(x, native, grid, bounds, changes, has_grad)
        return out if dtype == torch.float32 else out.to(dtype)
    limits = grid.limits(bounds)
    if in_place and not has_grad:
        out = _quantize_(x.clamp_(*limits), grid)
    elif isinstance(limits[0], Tensor):
        out = _FakeQuantize.apply(x, grid, *limits)
    else:
        out = F.hardtanh(x, *limits)
        # Its gradient is the one wanted, and needs its input, not what becomes of
        # its output: no autograd function of our own to enter.
        _quantize_(out.detach(), grid)
    return out if dtype == torch.float32 else out.to(dtype)

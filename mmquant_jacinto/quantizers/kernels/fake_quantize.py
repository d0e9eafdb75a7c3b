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


def _masked(kernels: Any, grad: Tensor, inside: Tensor, strides: tuple) -> Tensor:
    """``grad`` where nothing was clipped, zero elsewhere.

    Args:
        kernels: :mod:`native`, or :mod:`triton_kernels` on a GPU.
        grad (Tensor): Shape and dtype of what was quantized.
        inside (Tensor): What the kernels noted.
        strides (tuple): Of what was quantized.
    """
    if torch.is_grad_enabled():
        ones = grad.new_empty_strided(grad.shape, strides).fill_(1)
        return grad * kernels.mask(ones, inside)
    if grad.stride() != strides:
        grad = grad.new_empty_strided(grad.shape, strides).copy_(grad)
    return kernels.mask(grad, inside)


# Where it cannot be asked, masks live as long as the graph.
_keeps_graph = getattr(
    torch._C._autograd, '_get_current_graph_task_keep_graph', lambda: True
)


class _MaskHook:
    """Gradient of what was put on a grid in place, for what made it.

    In front of a node of the graph it takes a third of the time of a function of ours,
    which takes longer than a small layer.

    Args:
        kernels: :mod:`native`, or :mod:`triton_kernels` on a GPU.
        inside (Tensor): What they noted.
        x (Tensor): What they put on a grid.
    """

    __slots__ = ('kernels', 'inside', 'strides', 'place')

    def __init__(self, kernels: Any, inside: Tensor, x: Tensor) -> None:
        self.kernels, self.inside = kernels, inside
        self.strides, self.place = x.stride(), x.output_nr

    def __call__(self, grads: tuple) -> tuple:
        grad, inside = grads[self.place], self.inside
        if grad is not None:
            if inside is None:
                raise RuntimeError(
                    'a second backward pass through a graph of fake quantization: the '
                    'first one needs retain_graph=True'
                )
            grad = _masked(self.kernels, grad, inside, self.strides)
        if not _keeps_graph():
            # The graph may outlive the step, in a loss that somebody logs.
            self.inside = None
        return (*grads[: self.place], grad, *grads[self.place + 1 :])


class _FakeQuantizeFused(torch.autograd.Function):
    """Not in place: one pass over memory, and a bit kept for each element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernels: Any, grid: Grid, bounds: Bounds
    ) -> Tensor:
        out, inside = torch.empty_like(x), kernels.new_mask(x)
        kernels.fake_quantize(x, out, inside, grid, bounds)
        ctx.save_for_backward(inside)
        ctx.kernels, ctx.strides = kernels, x.stride()
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (inside,) = ctx.saved_tensors
        return _masked(ctx.kernels, grad, inside, ctx.strides), None, None, None


def _fuse(
    x: Tensor, kernels: Any, grid: Grid, bounds: Bounds, in_place: bool
) -> Tensor:
    """Fake quantization by one kernel."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        out = x if in_place else torch.empty_like(x)
        kernels.fake_quantize(x, out, None, grid, bounds)
        if in_place:
            torch.autograd.graph.increment_version(x)
        return out
    # What a leaf holds, or others see in a view, is not ours to change.
    if not in_place or x.is_leaf or x._is_view():
        return _FakeQuantizeFused.apply(x, kernels, grid, bounds)
    inside = kernels.new_mask(x)
    kernels.fake_quantize(x, x, inside, grid, bounds)
    # Autograd tells whoever has saved it.
    torch.autograd.graph.increment_version(x)
    x.grad_fn.register_prehook(_MaskHook(kernels, inside, x))
    return x


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
    if isinstance(grid.scale, Tensor) and triton_kernels.takes(x):
        return _fuse(x, triton_kernels, grid, bounds, in_place)
    dtype = x.dtype
    if dtype != torch.float32:
        # Half precision cannot hold the integers of 16 bits.
        x, in_place = x.float(), True
    if grid.rounding != HALF_AWAY and native.takes(x):
        out = _fuse(x, native, grid, bounds, in_place)
        return out if dtype == torch.float32 else out.to(dtype)
    has_grad = torch.is_grad_enabled() and x.requires_grad
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

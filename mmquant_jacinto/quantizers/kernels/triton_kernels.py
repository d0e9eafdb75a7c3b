"""Kernels for a GPU, in Triton, where it is installed.

They do in one launch, and in one pass over memory, what takes a chain of torch's
operations up to seven, with the same result: that of ``csrc/kernels.c``. PyTorch for
CUDA brings Triton along; without it the chain runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...targets.formats import HALF_AWAY, HALF_EVEN, HALF_UP

try:
    import triton

    from . import triton_sources as sources
except ImportError:
    triton = None
else:
    from .triton_launch import Launcher

    _put_on_grid = Launcher(sources.put_on_grid, aligned=3)
    _mask = Launcher(sources.mask, aligned=3)
    _fold_gradient = Launcher(sources.fold_gradient, aligned=2)

_ROUNDINGS = {HALF_EVEN: 0, HALF_UP: 1, HALF_AWAY: 2}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Elements of a program; eight for each of its threads.
BLOCK = 1024
# Of these each has a bit in a byte of a mask: bit k of byte b is that of element
# k * BLOCK + b, so that nothing has to be moved between threads.
LANES = 8
# Fused multiply-adds round once where the C kernels round twice.
_OPTIONS = dict(num_warps=4, enable_fp_fusion=False)


def takes(x: Tensor) -> bool:
    """Whether the kernels can work on the elements of ``x`` one after the other."""
    return (
        triton is not None
        and x.is_cuda
        and x.dtype in _DTYPES
        # No stand-in for a tensor, as compilers and exporters pass.
        and type(x) in (Tensor, nn.Parameter)
        and is_dense(x)
    )


def is_dense(x: Tensor) -> bool:
    """Whether a tensor's elements fill their memory, in an order that copies keep."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def _blocks(count: int, size: int = BLOCK) -> int:
    return -(-count // size)


def new_mask(x: Tensor) -> Tensor:
    """Room for what :func:`fake_quantize` notes: uint8, a bit for an element of x."""
    size = _blocks(x.numel(), LANES * BLOCK) * BLOCK
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def fake_quantize(
    x: Tensor,
    out: Tensor,
    inside: Tensor | None,
    grid: Any,
    bounds: tuple[float | None, float | None] | None,
) -> None:
    """Clamps ``x`` and puts it on a grid.

    Args:
        x (Tensor): See :func:`takes`.
        out (Tensor): Where to, laid out as ``x``; may be ``x``.
        inside (Tensor, optional): A :func:`new_mask`; gets 1 where ``x`` was strictly
            between the limits, else 0. None: nobody asks.
        grid (Grid): Of tensors.
        bounds (Tuple, optional): Real ``(low, high)`` of a fused activation.
    """
    above, below = bounds or (None, None)
    count, notes = x.numel(), inside is not None
    if not count:
        return
    _put_on_grid(
        _blocks(count, LANES * BLOCK if notes else BLOCK),
        (x, out, inside if notes else x, grid.scale, grid.low, grid.high),
        (
            count,
            -torch.inf if above is None else float(above),
            torch.inf if below is None else float(below),
        ),
        dict(
            ROUNDING=_ROUNDINGS[grid.rounding], LANES=LANES if notes else 0, BLOCK=BLOCK
        ),
        **_OPTIONS,
    )


def mask(grad: Tensor, inside: Tensor) -> Tensor:
    """``grad`` where ``inside`` is 1, zero where it is 0.

    Args:
        grad (Tensor): Laid out as what was quantized.
        inside (Tensor): As :func:`fake_quantize` left it.

    Returns:
        Tensor: Laid out as ``grad``.
    """
    out = torch.empty_like(grad)
    count = grad.numel()
    if count:
        _mask(
            _blocks(count, LANES * BLOCK),
            (grad, out, inside),
            (count,),
            dict(LANES=LANES, BLOCK=BLOCK),
            **_OPTIONS,
        )
    return out


def takes_rows(weight: Tensor, channels: int) -> bool:
    """Whether a weight lies in memory row by row, one for each channel."""
    return (
        takes(weight) and weight.dtype is torch.float32 and weight.shape[0] == channels
    )


def quantize_rows(
    weight: Tensor, factor: Tensor | None, step: Tensor, limits: tuple[int, int]
) -> Tensor:
    """``clamp(round(weight * factor), *limits) * step``, ties to even.

    Args:
        weight (Tensor): See :func:`takes_rows`.
        factor (Tensor, optional): C values. None: the inverse of ``step``.
        step (Tensor): C values.
        limits (Tuple[int, int]): Smallest and largest integer.

    Returns:
        Tensor: Laid out as ``weight``.
    """
    out = torch.empty_like(weight)
    count = weight.numel()
    sources.quantize_rows[(_blocks(count),)](
        weight,
        out,
        step if factor is None else factor.contiguous(),
        step.contiguous(),
        count // len(weight),
        float(limits[0]),
        float(limits[1]),
        count,
        INVERTS=factor is None,
        BLOCK=BLOCK,
        **_OPTIONS,
    )
    return out


def fold_gradient(
    grad: Tensor,
    weight: Tensor,
    factor: Tensor,
    bias_grad: Tensor,
    offset: Tensor,
    deviation: Tensor,
) -> Tensor:
    """Gradients of a folded normalization with frozen statistics.

    Args:
        grad (Tensor): Of the folded weight, (C, ...), see :func:`takes_rows`; becomes
            that of the weight.
        weight (Tensor): Laid out as ``grad``.
        factor (Tensor): What each row was multiplied by: (C,).
        bias_grad (Tensor): Gradient of the folded bias: (C,).
        offset (Tensor): The layer's bias less the running mean: (C,).
        deviation (Tensor): Inverse of the running standard deviation: (C,).

    Returns:
        Tensor: Gradient of the normalization's weight: (C,).
    """
    rows = len(grad)
    to_norm = torch.empty_like(deviation)
    columns = (x.contiguous() for x in (factor, bias_grad, offset, deviation))
    _fold_gradient(
        rows,
        (grad, weight, *columns, to_norm),
        (grad.numel() // rows,),
        dict(BLOCK=BLOCK),
        **_OPTIONS,
    )
    return to_norm


class Reach:
    """All rows of many matrices in one launch: their ends, and putting them on grids.

    Args:
        shapes (Sequence[Tuple[int, int]]): Rows and columns of each.
        device (torch.device): Where they are.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device) -> None:
        rows, columns = (torch.tensor(side, device='cpu') for side in zip(*shapes))
        starts = rows.cumsum(0) - rows
        self._total = int(rows.sum())
        owner = torch.arange(len(rows), device='cpu').repeat_interleave(rows)
        within = torch.arange(self._total, device='cpu') - starts[owner]
        self._device = device
        self._owner = owner.to(device)
        self._offset = (within * columns[owner]).to(device)
        self._columns = columns.to(device)
        elements = rows * columns
        self._elements = int(elements.sum())
        self._starts = (elements.cumsum(0) - elements).tolist()
        starts_there = torch.tensor(self._starts, device='cpu')
        self._place = (starts_there[owner] + within * columns[owner]).to(device)
        self._known: tuple[list[int], Tensor] | None = None

    def __call__(self, matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Measures them.

        Args:
            matrices (Sequence[Tensor]): Of the shapes given, or what flattens to
                them; see :func:`takes_rows`.

        Returns:
            Tuple[Tensor, Tensor]: Of the rows of all of them, end to end.
        """
        low, high = torch.empty(2, self._total, device=self._device).unbind()
        sources.reach[(self._total,)](
            self._addresses([x.data_ptr() for x in matrices]),
            self._owner,
            self._offset,
            self._columns,
            low,
            high,
            BLOCK=BLOCK,
            num_warps=4,
        )
        return low, high

    def quantize(
        self,
        matrices: Sequence[Tensor],
        factor: Tensor,
        step: Tensor,
        limits: tuple[Tensor, Tensor],
    ) -> list[Tensor]:
        """:func:`quantize_rows` of all of them.

        Args:
            matrices (Sequence[Tensor]): As above.
            factor (Tensor): One value for each row of all of them.
            step (Tensor): The same.
            limits (Tuple[Tensor, Tensor]): Smallest and largest integers, the same.

        Returns:
            List[Tensor]: Laid out as they are, in one piece of memory.
        """
        out = torch.empty(self._elements, device=self._device)
        sources.quantize_all[(self._total,)](
            self._addresses([x.data_ptr() for x in matrices]),
            self._owner,
            self._offset,
            self._columns,
            self._place,
            factor,
            step,
            *limits,
            out,
            BLOCK=BLOCK,
            **_OPTIONS,
        )
        return [
            out.as_strided(x.shape, x.stride(), start)
            for x, start in zip(matrices, self._starts)
        ]

    def _addresses(self, addresses: list[int]) -> Tensor:
        # Parameters stay where they are, as a rule.
        if self._known is None or self._known[0] != addresses:
            table = torch.tensor(addresses, device='cpu')
            if self._device.type == 'cuda':
                # From other memory a copy waits for the device.
                table = table.pin_memory().to(self._device, non_blocking=True)
            self._known = addresses, table
        return self._known[1]

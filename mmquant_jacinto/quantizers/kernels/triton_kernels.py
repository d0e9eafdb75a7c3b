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
    import triton.language as tl
except ImportError:
    triton = None

_ROUNDINGS = {HALF_EVEN: 0, HALF_UP: 1, HALF_AWAY: 2}
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Elements of a program; eight for each of its threads.
BLOCK = 1024
# Fused multiply-adds round once where the C kernels round twice.
_OPTIONS = dict(BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False)


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


def _blocks(count: int) -> tuple[int]:
    return (-(-count // BLOCK),)


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
        inside (Tensor, optional): Gets 1 where ``x`` was strictly between the limits,
            else 0; uint8, laid out as ``x``. None: nobody asks.
        grid (Grid): Of tensors.
        bounds (Tuple, optional): Real ``(low, high)`` of a fused activation.
    """
    above, below = bounds or (None, None)
    count = x.numel()
    if not count:
        return
    _put_on_grid[_blocks(count)](
        x,
        out,
        x if inside is None else inside,
        grid.scale,
        grid.low,
        grid.high,
        -torch.inf if above is None else above,
        torch.inf if below is None else below,
        count,
        ROUNDING=_ROUNDINGS[grid.rounding],
        NOTES=inside is not None,
        **_OPTIONS,
    )


def mask(grad: Tensor, inside: Tensor) -> Tensor:
    """``grad`` where ``inside`` is 1, zero where it is 0; both laid out alike."""
    out = torch.empty_like(grad)
    if grad.numel():
        _mask[_blocks(grad.numel())](
            grad, inside, out, grad.numel(), BLOCK=BLOCK, num_warps=4
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
    _quantize_rows[_blocks(count)](
        weight,
        out,
        step if factor is None else factor.contiguous(),
        step.contiguous(),
        count // len(weight),
        float(limits[0]),
        float(limits[1]),
        count,
        INVERTS=factor is None,
        **_OPTIONS,
    )
    return out


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
        self.starts = (elements.cumsum(0) - elements).tolist()
        starts_there = torch.tensor(self.starts, device='cpu')
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
        _reach[(self._total,)](
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
    ) -> Tensor:
        """:func:`quantize_rows` of all of them.

        Args:
            matrices (Sequence[Tensor]): As above.
            factor (Tensor): One value for each row of all of them.
            step (Tensor): The same.
            limits (Tuple[Tensor, Tensor]): Smallest and largest integers, the same.

        Returns:
            Tensor: Their elements, end to end; ``starts`` says where each begins.
        """
        out = torch.empty(self._elements, device=self._device)
        _quantize_all[(self._total,)](
            self._addresses([x.data_ptr() for x in matrices]),
            self._owner,
            self._offset,
            self._columns,
            self._place,
            factor,
            step,
            *limits,
            out,
            **_OPTIONS,
        )
        return out

    def _addresses(self, addresses: list[int]) -> Tensor:
        # Parameters stay where they are, as a rule.
        if self._known is None or self._known[0] != addresses:
            table = torch.tensor(addresses, device='cpu')
            if self._device.type == 'cuda':
                # From other memory a copy waits for the device.
                table = table.pin_memory().to(self._device, non_blocking=True)
            self._known = addresses, table
        return self._known[1]


if triton is not None:

    @triton.jit
    def _rounded(x, ROUNDING: tl.constexpr):
        if ROUNDING == 1:
            result = tl.floor(x + 0.5)
        else:
            magnitude = tl.abs(x)
            if ROUNDING == 0:
                # Beyond 2**23 there are no fractions to round: adding it drops them,
                # ties to even. Clamped values are far below.
                result = (magnitude + 8388608.0) - 8388608.0
            else:
                result = tl.floor(magnitude + 0.5)
            # Not `-result`, which is 0 - result and loses the sign of zero.
            result = tl.where(x < 0, result * -1.0, result)
        return result

    @triton.jit
    def _put_on_grid(
        x,
        out,
        inside,
        scale,
        low,
        high,
        above,
        below,
        count,
        ROUNDING: tl.constexpr,
        NOTES: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        there = place < count
        step = tl.load(scale)
        least = tl.maximum(tl.load(low) * step, above)
        most = tl.minimum(tl.load(high) * step, below)
        value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
        if NOTES:
            strictly = (value > least) & (value < most)
            tl.store(inside + place, strictly.to(tl.uint8), mask=there)
        # Comparisons let NaN pass.
        value = tl.where(value < least, least, value)
        value = tl.where(value > most, most, value)
        steps = _rounded(value * tl.math.div_rn(1.0, step), ROUNDING)
        tl.store(out + place, (steps * step).to(out.dtype.element_ty), mask=there)

    @triton.jit
    def _mask(grad, inside, out, count, BLOCK: tl.constexpr):
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        there = place < count
        value = tl.load(grad + place, mask=there, other=0.0)
        passes = tl.load(inside + place, mask=there, other=0) != 0
        tl.store(out + place, tl.where(passes, value, 0.0), mask=there)

    @triton.jit
    def _quantize_rows(
        weight,
        out,
        factor,
        step,
        columns,
        lowest,
        highest,
        count,
        INVERTS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        there = place < count
        row = place // columns
        size = tl.load(step + row, mask=there, other=1.0)
        if INVERTS:
            by = tl.math.div_rn(1.0, size)
        else:
            by = tl.load(factor + row, mask=there, other=1.0)
        value = tl.load(weight + place, mask=there, other=0.0) * by
        # Before rounding, which is exact for small numbers alone; ends are whole.
        value = tl.where(value < lowest, lowest, value)
        value = tl.where(value > highest, highest, value)
        tl.store(out + place, _rounded(value, 0) * size, mask=there)

    @triton.jit
    def _quantize_all(
        addresses,
        owner,
        offset,
        columns,
        place,
        factor,
        step,
        lowest,
        highest,
        out,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0)
        matrix = tl.load(owner + row)
        start = tl.load(addresses + matrix).to(tl.pointer_type(tl.float32))
        start += tl.load(offset + row)
        out += tl.load(place + row)
        width = tl.load(columns + matrix)
        by, size = tl.load(factor + row), tl.load(step + row)
        least, most = tl.load(lowest + row), tl.load(highest + row)
        for first in range(0, width, BLOCK):
            column = first + tl.arange(0, BLOCK)
            there = column < width
            value = tl.load(start + column, mask=there, other=0.0) * by
            value = tl.where(value < least, least, value)
            value = tl.where(value > most, most, value)
            tl.store(out + column, _rounded(value, 0) * size, mask=there)

    @triton.jit
    def _reach(addresses, owner, offset, columns, low, high, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        matrix = tl.load(owner + row)
        start = tl.load(addresses + matrix).to(tl.pointer_type(tl.float32))
        start += tl.load(offset + row)
        width = tl.load(columns + matrix)
        least = tl.full((BLOCK,), float('inf'), tl.float32)
        most = tl.full((BLOCK,), float('-inf'), tl.float32)
        strange = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, width, BLOCK):
            column = first + tl.arange(0, BLOCK)
            there = column < width
            value = tl.load(start + column, mask=there, other=0.0)
            least = tl.where(there & (value < least), value, least)
            most = tl.where(there & (value > most), value, most)
            # A comparison skips NaN; this is zero but for NaN and infinity.
            strange += value - value
        nan = tl.sum(strange, 0)
        tl.store(low + row, tl.min(least, 0) + nan)
        tl.store(high + row, tl.max(most, 0) + nan)

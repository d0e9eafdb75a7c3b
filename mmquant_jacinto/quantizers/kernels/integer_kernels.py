"""Kernels in C for tests on integers: from sums to a grid in one pass over memory."""

import math
from typing import Optional

import torch
from torch import Tensor

from ...targets.fixed_point import ProductTerms, SumTerms
from ...targets.formats import HALF_AWAY, HALF_EVEN, HALF_UP
from . import native

# Elements that a thread takes at a time, where all are treated alike.
_PIECE = 4096
_ROUNDINGS = {HALF_EVEN: 0, HALF_UP: 1, HALF_AWAY: 2}


def _takes(x: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a kernel may work on a tensor: autograd would not see it."""
    return native.takes(x, dtype) and not x.requires_grad


def takes_elements(x: Tensor) -> bool:
    """Whether :func:`to_integers` and :func:`look_up` can work on a tensor."""
    return _takes(x) and x.numel() > 0


def takes_sums(total: Tensor, multiplier: Optional[Tensor]) -> bool:
    """Whether :func:`requantize` can work on sums, and multiply them.

    Args:
        total (Tensor): The sums.
        multiplier (Tensor, optional): One number per channel, shaped to multiply them.
    """
    dtype = torch.float64 if total.dtype is torch.float64 else torch.float32
    if not (_takes(total, dtype) and total.numel()):
        return False
    if multiplier is None:
        return True
    axis = total.dim() - multiplier.dim()
    return axis >= 0 and total.shape[axis] == len(multiplier) == multiplier.numel()


def requantize(
    total: Tensor,
    multiplier: Optional[Tensor],
    rounding: str,
    limits: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``clamp(round(total * multiplier), *limits)``, and that times ``scale``.

    Args:
        total (Tensor): See :func:`takes_sums`; products are of its dtype. May be
            overwritten.
        multiplier (Tensor, optional): One number per channel, shaped to multiply it,
            float32. None: 1.
        rounding (str): One of :data:`~mmquant_jacinto.targets.formats.ROUNDINGS`.
        limits (Tuple[int, int]): Smallest and largest integer.
        scale (float): What an integer stands for.

    Returns:
        Tuple[Tensor, Tensor]: Integers and real numbers, float32, laid out as
        ``total``.
    """
    is_double = total.dtype is torch.float64
    integers = torch.empty_like(total, dtype=torch.float32) if is_double else total
    real = torch.empty_like(total, dtype=torch.float32)
    columns, count, each, factors = _PIECE, 1, False, None
    if multiplier is not None:
        factors = multiplier.contiguous()
        count = len(factors)
        each = factors.dim() == 1 or not total.is_contiguous()
        columns = count if each else total.stride(total.dim() - factors.dim())
    library = native.library()
    run = library.mmquant_requantize_double if is_double else library.mmquant_requantize
    run(
        total.data_ptr(),
        integers.data_ptr(),
        real.data_ptr(),
        total.numel(),
        columns,
        None if factors is None else factors.data_ptr(),
        count,
        each,
        _ROUNDINGS[rounding],
        *limits,
        scale,
    )
    return integers, real


def to_integers(x: Tensor, scale: float) -> Tensor:
    """``round(x / scale)`` of numbers on a grid of that scale.

    Args:
        x (Tensor): See :func:`takes_elements`.
        scale (float): Of the grid.

    Returns:
        Tensor: float32, laid out as ``x``.
    """
    integers = torch.empty_like(x)
    factor = torch.tensor([1.0 / scale])
    # The numbers are next to integers, so a product is as good as a quotient.
    native.library().mmquant_requantize(
        x.data_ptr(),
        integers.data_ptr(),
        None,
        x.numel(),
        _PIECE,
        factor.data_ptr(),
        1,
        False,
        _ROUNDINGS[HALF_EVEN],
        -math.inf,
        math.inf,
        scale,
    )
    return integers


def takes_pair(x: Tensor, y: Tensor) -> bool:
    """Whether :func:`add` and :func:`multiply` can work on two tensors."""
    return _takes(x) and _takes(y) and x.shape == y.shape and x.stride() == y.stride()


def add(x: Tensor, y: Tensor, terms: SumTerms) -> Tensor:
    """Two quantized tensors in steps of their sum.

    Args:
        x (Tensor): Integers less the zero point; see :func:`takes_pair`.
        y (Tensor): The same.
        terms (SumTerms): What they are multiplied by.

    Returns:
        Tensor: float32, laid out as both.
    """
    out = torch.empty_like(x)
    pointers = x.data_ptr(), y.data_ptr(), out.data_ptr()
    if terms.zero is None:
        native.library().mmquant_add_steps(*pointers, x.numel(), *terms[:2])
    else:
        native.library().mmquant_add_stored(*pointers, x.numel(), *terms)
    return out


def multiply(x: Tensor, y: Tensor, terms: ProductTerms) -> Tensor:
    """Two quantized tensors in steps of their product.

    Args:
        x (Tensor): Integers less the zero point; see :func:`takes_pair`.
        y (Tensor): The same.
        terms (ProductTerms): What their product is multiplied by.

    Returns:
        Tensor: float32, laid out as both.
    """
    out = torch.empty_like(x)
    native.library().mmquant_multiply(
        x.data_ptr(),
        y.data_ptr(),
        out.data_ptr(),
        x.numel(),
        terms.ratio,
        terms.zero or 0.0,
        terms.zero is not None,
    )
    return out


def look_up(x: Tensor, table: Tensor, low: int, scale: float) -> tuple[Tensor, Tensor]:
    """What a table has for each integer, and that times ``scale``.

    Args:
        x (Tensor): Integers; see :func:`takes_elements`.
        table (Tensor): Integers for all that ``x`` may be, from ``low`` on, float32.
        low (int): Smallest integer.
        scale (float): What an integer of the table stands for.

    Returns:
        Tuple[Tensor, Tensor]: Integers and real numbers, float32, laid out as ``x``.
    """
    integers, real = torch.empty_like(x), torch.empty_like(x)
    native.library().mmquant_look_up(
        x.data_ptr(),
        integers.data_ptr(),
        real.data_ptr(),
        x.numel(),
        table.data_ptr(),
        len(table),
        low,
        scale,
    )
    return integers, real


def takes_places(pixels: Tensor, rows: Tensor, columns: Tensor) -> bool:
    """Whether :func:`interpolate` can read maps at places."""
    return _takes(pixels) and _takes(rows) and _takes(columns)


def interpolate(
    pixels: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]
) -> Tensor:
    """Bilinear interpolation; outside there are zeros.

    Args:
        pixels (Tensor): What the channels have at each pixel: (N * H * W, C).
        rows (Tensor): Where to, in pixels: (N, P).
        columns (Tensor): The same.
        size (Tuple[int, int]): H and W.

    Returns:
        Tensor: (N, P, C), float32.
    """
    rows, columns = rows.contiguous(), columns.contiguous()
    parts, points, channels = *rows.shape, pixels.shape[1]
    out = pixels.new_empty(parts, points, channels)
    native.library().mmquant_interpolate(
        pixels.data_ptr(),
        rows.data_ptr(),
        columns.data_ptr(),
        out.data_ptr(),
        parts,
        points,
        channels,
        *size,
    )
    return out

"""The kernels in C (``csrc/kernels.c``), where they were built.

They do in one pass over memory what takes a chain of torch's operations four, with
the same result. An installation without a compiler has none; then, and on an
accelerator, the chain runs.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from ...targets.formats import HALF_UP
from ...targets.grid import Bounds, Grid

# Of the elements that a byte of a mask is for: `LANE` in the kernels.
_LANE = 512
_POINTER, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_REQUANTIZE = (
    [_POINTER] * 3
    + [_INT64, _INT64, _POINTER, _INT64, ctypes.c_int, ctypes.c_int]
    + [_FLOAT] * 3
)
_SIGNATURES = dict(
    mmquant_put_on_grid=[_POINTER] * 3
    + [_INT64, _FLOAT, _FLOAT, _FLOAT, _FLOAT, ctypes.c_int],
    mmquant_mask=[_POINTER] * 3 + [_INT64],
    mmquant_learned_gradient=[_POINTER] * 3
    + [_INT64]
    + [_FLOAT] * 7
    + [ctypes.c_int, _POINTER],
    mmquant_quantize_rows=[_POINTER] * 2
    + [_INT64, _INT64, _POINTER, _POINTER, _FLOAT, _FLOAT],
    mmquant_quantize_all=[_POINTER] * 5 + [_INT64] + [_POINTER] * 4,
    mmquant_fold_gradient=[_POINTER] * 2 + [_INT64, _INT64] + [_POINTER] * 5,
    mmquant_reach=[_POINTER] * 4 + [_INT64] + [_POINTER] * 2,
    mmquant_requantize=_REQUANTIZE,
    mmquant_requantize_double=_REQUANTIZE,
    mmquant_add_steps=[_POINTER] * 3 + [_INT64, _FLOAT, _FLOAT],
    mmquant_add_stored=[_POINTER] * 3 + [_INT64] + [ctypes.c_double] * 5 + [_FLOAT],
    mmquant_multiply=[_POINTER] * 3 + [_INT64, _FLOAT, _FLOAT, ctypes.c_int],
    mmquant_interpolate=[_POINTER] * 4 + [_INT64] * 5,
    mmquant_robust_moments=[_POINTER] + [_INT64] * 3 + [_POINTER] * 3,
    mmquant_look_up=[_POINTER] * 3 + [_INT64, _POINTER, _INT64, _FLOAT, _FLOAT],
)


def _load() -> Optional[ctypes.CDLL]:
    spec = importlib.util.find_spec('mmquant_jacinto.quantizers.kernels._native')
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
    except (OSError, AttributeError):
        # Built for another machine, or by an earlier version.
        return None
    return library


_library = _load()


def is_built() -> bool:
    """Whether there are kernels in C."""
    return _library is not None


def library() -> ctypes.CDLL:
    """The kernels; where :func:`is_built`."""
    return _library


def takes(x: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernels can work on the elements of ``x`` one after the other."""
    return (
        _library is not None
        and x.is_cpu
        and x.dtype is dtype
        and (
            x.is_contiguous()
            or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        )
    )


def new_mask(x: Tensor) -> Tensor:
    """Room for what :func:`fake_quantize` notes: uint8, a bit for an element of x."""
    size = -(-x.numel() // (8 * _LANE)) * _LANE
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def fake_quantize(
    x: Tensor,
    out: Tensor,
    inside: Optional[Tensor],
    grid: Grid,
    bounds: Bounds,
) -> None:
    """Clamps ``x`` and puts it on a grid.

    Args:
        x (Tensor): See :func:`takes`.
        out (Tensor): Where to, laid out as ``x``; may be ``x``.
        inside (Tensor, optional): A :func:`new_mask`; gets 1 where ``x`` was strictly
            between the limits, else 0. None: nobody asks.
        grid (Grid): In Python numbers; rounds half up or to even.
        bounds (tuple, optional): Real ``(low, high)`` of a fused activation.
    """
    _library.mmquant_put_on_grid(
        x.data_ptr(),
        out.data_ptr(),
        None if inside is None else inside.data_ptr(),
        x.numel(),
        1.0 / grid.scale,
        grid.scale,
        *grid.limits(bounds),
        grid.rounding == HALF_UP,
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
    _library.mmquant_mask(
        grad.data_ptr(), inside.data_ptr(), out.data_ptr(), grad.numel()
    )
    return out


def learned_gradient(
    x: Tensor,
    grad: Tensor,
    scale: float,
    limits: tuple[float, float],
    ends: tuple[float, float, int, int],
    half_up: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of fake quantization on a grid whose step is learned.

    Args:
        x (Tensor): What was quantized; see :func:`takes`.
        grad (Tensor): Of the result; laid out as ``x``.
        scale (float): Step of the grid.
        limits (Tuple[float, float]): Where it was clamped.
        ends (Tuple): The grid's ends, real and in steps.
        half_up (bool): As in :func:`fake_quantize`.

    Returns:
        Tuple[Tensor, Tensor, Tensor]: Gradient of ``x``; of the step, (); sum of
        the gradients where the grid clips, ().
    """
    out = torch.empty_like(grad)
    sums = torch.empty(2)
    _library.mmquant_learned_gradient(
        x.data_ptr(),
        grad.data_ptr(),
        out.data_ptr(),
        x.numel(),
        scale,
        *limits,
        *ends,
        half_up,
        sums.data_ptr(),
    )
    to_step, clipped = sums.unbind()
    return out, to_step, clipped


def quantize_rows(
    weight: Tensor, factor: Tensor, step: Tensor, limits: tuple[int, int]
) -> Tensor:
    """``clamp(round(weight * factor), *limits) * step``, ties to even.

    Args:
        weight (Tensor): (C, ...), contiguous float32.
        factor (Tensor): C values.
        step (Tensor): C values.
        limits (Tuple[int, int]): Smallest and largest integer.

    Returns:
        Tensor: Shape of ``weight``.
    """
    factor, step = factor.contiguous(), step.contiguous()
    out = torch.empty_like(weight)
    rows = weight.shape[0]
    _library.mmquant_quantize_rows(
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        weight.numel() // rows,
        factor.data_ptr(),
        step.data_ptr(),
        *limits,
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
        grad (Tensor): Of the folded weight, (C, ...), contiguous float32; becomes that
            of the weight.
        weight (Tensor): Laid out as ``grad``.
        factor (Tensor): What each row was multiplied by: (C,).
        bias_grad (Tensor): Gradient of the folded bias: (C,).
        offset (Tensor): The layer's bias less the running mean: (C,).
        deviation (Tensor): Inverse of the running standard deviation: (C,).

    Returns:
        Tensor: Gradient of the normalization's weight: (C,).
    """
    rows = grad.shape[0]
    to_norm = torch.empty(rows, device='cpu')
    columns = [x.contiguous() for x in (factor, bias_grad, offset, deviation)]
    _library.mmquant_fold_gradient(
        grad.data_ptr(),
        weight.data_ptr(),
        rows,
        grad.numel() // rows,
        *[x.data_ptr() for x in columns],
        to_norm.data_ptr(),
    )
    return to_norm


def robust_mean(x: Tensor, axis: int, squares: bool = False) -> Tensor:
    """Mean of each channel by two steps of Huber's estimator.

    Args:
        x (Tensor): See :func:`takes`.
        axis (int): Of its channels.
        squares (bool): Whether the plain mean and the variance are wanted too.

    Returns:
        Tensor: (C,), or (3, C) with these. Torch's operations add in another order.
    """
    rows = x if x.is_contiguous() else x.movedim(axis, -1).contiguous()
    axis = axis if rows is x else x.dim() - 1
    channels, inner = rows.shape[axis], rows.shape[axis + 1 :].numel()
    outer = rows.shape[:axis].numel()
    found = torch.empty((3, channels) if squares else channels, device='cpu')
    places = [row.data_ptr() for row in found] if squares else [found.data_ptr(), 0, 0]
    _library.mmquant_robust_moments(rows.data_ptr(), outer, channels, inner, *places)
    return found


class Reach:
    """All rows of many matrices in one call: their ends, and putting them on grids.

    Args:
        shapes (Sequence[Tuple[int, int]]): Rows and columns of each.
        device (torch.device, optional): Theirs, always a CPU.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        device: Optional[torch.device] = None,
    ) -> None:
        rows, columns = (torch.tensor(side, device='cpu') for side in zip(*shapes))
        self._rows, self._columns = rows, columns
        self._starts = rows.cumsum(0) - rows
        self._total = int(rows.sum())

    def __call__(self, matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Measures them.

        Args:
            matrices (Sequence[Tensor]): Of the shapes given, or what flattens to
                them; contiguous float32.

        Returns:
            Tuple[Tensor, Tensor]: Of the rows of all of them, end to end.
        """
        low, high = torch.empty(2, self._total, device='cpu').unbind()
        pointers = self._addresses(matrices)
        _library.mmquant_reach(
            pointers,
            self._rows.data_ptr(),
            self._columns.data_ptr(),
            self._starts.data_ptr(),
            len(matrices),
            low.data_ptr(),
            high.data_ptr(),
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
            List[Tensor]: Laid out as they are. Each has memory of its own, which a
            backward pass gives back as it goes.
        """
        outs = [torch.empty_like(x) for x in matrices]
        _library.mmquant_quantize_all(
            self._addresses(matrices),
            self._addresses(outs),
            self._rows.data_ptr(),
            self._columns.data_ptr(),
            self._starts.data_ptr(),
            len(matrices),
            *[x.data_ptr() for x in (factor, step, *limits)],
        )
        return outs

    def _addresses(self, matrices: Sequence[Tensor]) -> ctypes.Array:
        return (_POINTER * len(matrices))(*[x.data_ptr() for x in matrices])

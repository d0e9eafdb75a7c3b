"""Exact functions: softmax and normalizations that do not depend on an order.

A sum of float numbers depends on the order of adding, and an engine's exponential on
its processor. Over 8-bit integers neither needs to: sums of integers are exact, and
an exponential that is rounded to integers right away, away from ties, is the same
whoever computes it. The exported graph has the same operations
(:mod:`~mmquant_jacinto.export.operators.exact`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...record.ops import per_axis
from ...targets.grid import Grid, divisor
from .adaptive_pool import ADAPTIVE, adaptive_pool, is_uneven
from .sampling import Resize, grid_sample, interpolate

# So many squares of 8-bit integers add up exactly in float32.
EXACT_SQUARES = 257
MANTISSA = 24  # bits of float32
RESIZES = ('interpolate', 'upsample')
# How far an engine's float32 exponential may be off, relative.
_EXP_ERROR = 4e-7
_MOST_BITS, _LEAST_BITS = 18, 10
# Of the constant that is added before rounding down; 1/2 rounds to the nearest.
_OFFSETS = np.arange(32, 97) / 128


class RoundedExp(NamedTuple):
    """How exponentials become integers: ``floor(exp(x) * 2**bits + offset)``.

    Args:
        bits (int): Of the integer that ``exp(0)`` becomes.
        offset (float): What is added, a multiple of 1/128.
    """

    bits: int
    offset: float


# Of what is on no grid.
REAL_EXP = RoundedExp(_MOST_BITS, 0.5)


@functools.cache
def rounded_exp(unit: float, levels: int) -> RoundedExp:
    """The finest rounding of ``exp(-k * unit)``, k below ``levels``, without ties.

    Args:
        unit (float): Of the exponent, a float32 number.
        levels (int): How many there are.
    """
    exponents = -np.arange(1, levels, dtype=np.float32) * np.float32(unit)
    exact = np.exp(exponents.astype(np.float64))
    for bits in range(_MOST_BITS, _LEAST_BITS, -1):
        values = exact * 2.0**bits
        # Adding the offset rounds as well.
        errors = values * (_EXP_ERROR + 2.0**-MANTISSA) + 2.0**-MANTISSA
        shares = (values + _OFFSETS[:, None]) % 1.0
        margins = (np.minimum(shares, 1.0 - shares) - errors).min(1, initial=1.0)
        safe = margins > 0
        if safe.any():
            distance = np.where(safe, np.abs(_OFFSETS - 0.5), 1.0)
            return RoundedExp(bits, float(_OFFSETS[distance.argmin()]))
    return RoundedExp(_LEAST_BITS, 0.5)


def is_exact(
    name: str, x: Tensor, given: Grid | None, args: tuple, kwargs: Mapping
) -> bool:
    """Whether there is an exact function for a call.

    Args:
        name (str): Of the function.
        x (Tensor): Its input.
        given (Grid, optional): Of the integers that it is called with; None where it
            gets real numbers.
        args (tuple): Of the call, behind its input.
        kwargs (Mapping): Of the call.
    """
    if name == 'softmax':
        dim = args[0] if args else kwargs.get('dim')
        return len(args) < 2 and dim is not None and kwargs.get('dtype') is None
    if name == 'masked_softmax':
        return True
    if given is None:
        return False
    if name == 'grid_sample':
        options = dict(zip(('mode', 'padding_mode'), args[1:]), **kwargs)
        grid = args[0] if args else kwargs['grid']
        return (
            grid.shape[-1] == 2
            and options.get('mode', 'bilinear') == 'bilinear'
            and options.get('padding_mode', 'zeros') == 'zeros'
        )
    if name in RESIZES:
        call = Resize(*args, **kwargs)
        return call.mode == 'bilinear' and not call.antialias
    if name == 'avg_pool2d':
        # Divided by a power of two, a sum is exact by itself.
        pool = Pool(*args, **kwargs)
        return pool.varies and pool.is_wide or bool(pool.area & (pool.area - 1))
    if name in ADAPTIVE:
        return is_uneven(x.shape[-ADAPTIVE[name] :], *args, **kwargs)
    return name in EXACT_FUNCTIONS


def narrow(grid: Grid | None) -> Grid | None:
    """A grid of up to 8 bits; None for others, which are computed in real numbers."""
    return None if grid is None or grid.levels > 256 else grid


def softmax(
    x: Tensor,
    given: Grid | None,
    dim: int,
    *,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``F.softmax`` of integers, or of real numbers where ``given`` is None."""
    return _softmax(x, given, 1.0, None, dim)


def masked_softmax(
    x: Tensor,
    given: Grid | None,
    scale: float,
    mask: Tensor | None,
    safe: bool = False,
) -> Tensor:
    """:func:`~mmquant_jacinto.record.attention.masked_softmax`, as :func:`softmax`.

    Of integers it is exact where the mask is zero or minus infinity.
    """
    weights = _softmax(x, given, scale, mask, -1)
    if not safe or mask is None:
        return weights
    empty = (mask == -torch.inf).all(-1, keepdim=True)
    return weights.masked_fill(empty, 0.0)


def unit_of(given: Grid, scale: float) -> float:
    """What a step of a grid adds to an exponent, a float32 number."""
    return float(np.float32(given.scale) * np.float32(scale))


def _softmax(
    x: Tensor, given: Grid | None, scale: float, mask: Tensor | None, dim: int
) -> Tensor:
    if given is None:
        # No table of points: float64 keeps ties rare enough never to be seen.
        (bits, offset), unit = REAL_EXP, 1.0
        x = x * scale if scale != 1 else x
        x = x if mask is None else x + mask
    else:
        unit = unit_of(given, scale)
        bits, offset = rounded_exp(unit, given.levels)
        x = x if mask is None else x + mask / divisor(unit, mask)
    steps = x - x.amax(dim, keepdim=True)
    powers = (steps * unit).double().exp_().mul_(2.0**bits).add_(offset).floor_()
    total = powers.sum(dim, keepdim=True).float()
    return powers.float().div_(total)


def _statistics(rows: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of rows of integers, float64: (..., 1)."""
    count = divisor(rows.shape[-1], rows)
    mean = rows.sum(-1, keepdim=True) / count
    variance = rows.square().sum(-1, keepdim=True) / count - mean * mean
    return mean, 1.0 / (variance + epsilon).sqrt()


def group_norm(
    x: Tensor,
    given: Grid,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.group_norm`` of integers: (N, C, ...)."""
    count = x.shape[1:].numel() // num_groups
    rows = x.double().reshape(x.shape[0], num_groups, count)
    mean, gain = _statistics(rows, eps / given.scale**2)
    if weight is not None:
        gain = gain * weight.double().view(num_groups, -1)
    offset = -mean * gain
    if bias is not None:
        offset = offset + bias.double().view(num_groups, -1)
    shape = x.shape[:2] + (1,) * (x.dim() - 2)
    channels = x.shape[1] // num_groups
    gain, offset = (
        item.expand(-1, -1, channels).reshape(shape).float() for item in (gain, offset)
    )
    return (x * gain).add_(offset)


def layer_norm(
    x: Tensor,
    given: Grid,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.layer_norm`` of integers: (..., *normalized_shape)."""
    dims = len(normalized_shape)
    rows = x.double().flatten(-dims)
    mean, gain = _statistics(rows, eps / given.scale**2)
    shape = x.shape[:-dims] + (1,) * dims
    gain, offset = (item.float().view(shape) for item in (gain, -mean * gain))
    out = (x * gain).add_(offset)
    if weight is not None:
        out = out * weight
    return out if bias is None else out + bias


def resize(x: Tensor, given: Grid, *args: Any, **kwargs: Any) -> Tensor:
    """``F.interpolate`` of integers, bilinear."""
    call = Resize(*args, **kwargs)
    source = x.shape[2:]
    target = call.target(source)
    if call.is_dyadic(source, target):
        return F.interpolate(x, *call[:-1]).mul_(given.scale)
    points = call.positions(source, target, x.device)
    out = interpolate(x, *(item.expand(len(x), -1) for item in points))
    return out.transpose(1, 2).reshape(*x.shape[:2], *target).mul_(given.scale)


class Pool(NamedTuple):
    """The arguments of ``F.avg_pool2d`` and its kin behind their input."""

    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def area(self) -> int:
        """int: Elements of a window."""
        return math.prod(per_axis(self.kernel_size, 2))

    @property
    def is_wide(self) -> bool:
        """bool: Whether parts of its windows may have three elements."""
        widest = max(per_axis(self.kernel_size, 2))
        return widest > 2 or self.counts_padding or self.divisor_override is not None

    @property
    def counts_padding(self) -> bool:
        return self.count_include_pad and any(per_axis(self.padding, 2))

    @property
    def varies(self) -> bool:
        """bool: Whether it does not divide all sums by the size of a window.

        Windows that reach beyond the padding count elements up to its end.
        """
        is_cut = any(per_axis(self.padding, 2)) and not self.count_include_pad
        return self.ceil_mode or is_cut or self.divisor_override is not None

    def sums(self, x: Tensor) -> Tensor:
        """Sums of windows: (N, C, H', W')."""
        return F.avg_pool2d(x, *self[:-1], divisor_override=1)

    def factors(self, like: Tensor, scale: float) -> Tensor:
        """What the sums of integers are multiplied by: (1, 1, H', W'), float32.

        Args:
            like (Tensor): What is pooled.
            scale (float): Of the integers.
        """
        size = like.shape[2:]
        ones = torch.ones(1, 1, *size, device=like.device)
        out = self.sums(ones)
        if self.divisor_override is not None:
            counts = torch.full_like(out, self.divisor_override)
        elif not self.counts_padding:
            counts = out
        else:
            rows, columns = per_axis(self.padding, 2)
            ones = F.pad(ones, (columns, columns, rows, rows), value=1.0)
            # The padding is part of the map now.
            inner = self._replace(padding=0, count_include_pad=False)
            counts = inner.sums(ones)[..., : out.shape[2], : out.shape[3]]
        return torch.full_like(counts, scale).div_(counts)


def is_global_pool(name: str, size: Sequence[int], args: tuple, kwargs: dict) -> bool:
    """Whether a call averages whole maps, in one piece.

    Args:
        name (str): Of the function.
        size (Sequence[int]): Of the maps.
        args (tuple): Of the call, behind its input.
        kwargs (dict): Of the call.
    """
    if name.startswith('adaptive_avg_pool'):
        sizes = args[0] if args else kwargs['output_size']
        return all(item == 1 for item in np.ravel(sizes))
    if not name.startswith('avg_pool'):
        return False
    given = dict(zip(('kernel_size', 'stride', 'padding'), args), **kwargs)
    kernel = per_axis(given['kernel_size'], len(size))
    return kernel == list(size) and not any(per_axis(given.get('padding', 0), 1))


def average_pool(x: Tensor, given: Grid, *args: Any, **kwargs: Any) -> Tensor:
    """``F.avg_pool2d`` of integers: exact sums, scaled once."""
    pool = Pool(*args, **kwargs)
    if pool.varies:
        return pool.sums(x).mul_(pool.factors(x, given.scale))
    area = pool.area
    return F.avg_pool2d(x, *pool).mul_(area).round_().mul_(given.scale / area)


# Called as ``function(x, grid, *the call's other arguments)``: integers less the zero
# point, float32, and their grid; or real numbers and None. They return real numbers,
# float32. :func:`is_exact` says which calls they take.
EXACT_FUNCTIONS: Mapping[str, Callable] = {
    'softmax': softmax,
    'masked_softmax': masked_softmax,
    'group_norm': group_norm,
    'layer_norm': layer_norm,
    'grid_sample': grid_sample,
    'avg_pool2d': average_pool,
    **{
        name: functools.partial(adaptive_pool, dims=dims)
        for name, dims in ADAPTIVE.items()
    },
    **dict.fromkeys(RESIZES, resize),
}


def compute(name: str, x: Tensor, given: Grid | None, *args: Any, **kwargs: Any) -> Any:
    """A function of these, laid out in memory as PyTorch's own does it."""
    out = EXACT_FUNCTIONS[name](x, given, *args, **kwargs)
    layout = torch.contiguous_format
    follows = name in _LAID_OUT_AS_INPUT and not (x.is_cuda and name == 'group_norm')
    if follows and x.dim() == 4 and not x.is_contiguous():
        if x.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
    return out.contiguous(memory_format=layout)


_LAID_OUT_AS_INPUT = ('group_norm', 'avg_pool2d', 'adaptive_avg_pool2d', *RESIZES)

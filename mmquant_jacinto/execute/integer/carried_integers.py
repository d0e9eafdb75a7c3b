"""Carried: the integers that a dequantized tensor brings along."""

from typing import Any, Optional

from torch import Tensor
from torch.utils._pytree import tree_flatten

from ...quantizers.kernels import integer_kernels
from ...record.memory import version_of
from ...targets.grid import Grid, divisor

_TAG = '_mmquant_integers'  # (grid, integers, version) on a tensor object
_PROMISED = '_mmquant_on_grid'  # the version in which it is on its quantizer's grid


def grid_of(x: Any) -> Optional[Grid]:
    """The grid whose integers a tensor carries, if it carries any."""
    known = tag_of(x)
    return None if known is None else known[0]


def with_integers(x: Tensor, grid: Grid, integers: Optional[Tensor]) -> Tensor:
    setattr(x, _TAG, (grid, integers, version_of(x)))
    return x


def tag_of(x: Tensor) -> Optional[tuple[Grid, Optional[Tensor]]]:
    known = getattr(x, _TAG, None)
    # Written to since: it is no longer what the integers say.
    return None if known is None or known[2] != version_of(x) else known[:2]


def promise_integers(x: Tensor) -> None:
    """Says that a tensor is on the grid that a plan gives it, as one of a file is."""
    setattr(x, _PROMISED, version_of(x))


def is_promised(x: Tensor) -> bool:
    """Whether a tensor that carries no integers is on its quantizer's grid."""
    version = getattr(x, _PROMISED, None)
    return version is not None and version == version_of(x) and tag_of(x) is None


def integers_of(x: Tensor) -> Optional[tuple[Grid, Tensor]]:
    """Grid and integers, less the zero point, that a tensor carries."""
    known = tag_of(x)
    if known is None:
        return None
    grid, integers = known
    if integers is None:
        if integer_kernels.takes_elements(x):
            integers = integer_kernels.to_integers(x, grid.scale)
        else:
            integers = (x / divisor(grid.scale, x)).round_()
        with_integers(x, grid, integers)
    return grid, integers


def carry(known: Optional[tuple[Grid, Optional[Tensor]]], out: Any) -> Any:
    """What an operation gives that only moves elements of a tensor of this tag."""
    if known is not None:
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                with_integers(leaf, known[0], None)
    return out

"""Tables: functions of one quantized tensor, computed once for all of its grid."""

from typing import Optional

import torch
from torch import Tensor

from ...quantizers.kernels import integer_kernels
from ...targets.fixed_point import FixedPoint
from ...targets.grid import Bounds, Grid, divisor, round_tensor

# On integers that came from a table: (integers that were looked up, grid, table).
_SOURCE = '_mmquant_looked_up'


class Tables:
    """What an engine computes from the integers of one tensor.

    Args:
        engine (FixedPoint): Its arithmetic.
    """

    def __init__(self, engine: FixedPoint) -> None:
        self._engine = engine
        self._tables: dict[tuple, Tensor] = {}

    def look_up(
        self, function: str, given: Grid, grid: Grid, clip: Bounds, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A function of the engine.

        Args:
            function (str): Its name.
            given (Grid): Of ``x``.
            grid (Grid): Of the output.
            clip (tuple, optional): Real bounds of a fused activation.
            x (Tensor): Integers less the zero point.

        Returns:
            Tuple[Tensor, Tensor]: Integers and real numbers, shaped as ``x``.
        """
        limits = grid.integer_limits(clip)
        key = (function, given, grid, limits)
        if key not in self._tables:
            points = _points(given, x)
            steps = self._engine.function(function)(points * given.scale)
            steps = steps / divisor(grid.scale, steps)
            self._tables[key] = _on_grid(steps, grid, limits)
        table = self._tables[key]
        integers, real = _read(table, given, grid, x)
        setattr(integers, _SOURCE, (x, given, table))
        return integers, real

    def look_up_product(
        self, pair: tuple[Tensor, Tensor], grids: tuple[Grid, Grid, Grid], clip: Bounds
    ) -> Optional[tuple[Tensor, Tensor]]:
        """The product of a tensor and a function of it, as in SiLU.

        Args:
            pair (Tuple[Tensor, Tensor]): Integers less the zero point.
            grids (Tuple[Grid, Grid, Grid]): Theirs, and that of the product.
            clip (tuple, optional): Real bounds of a fused activation.

        Returns:
            Tuple[Tensor, Tensor]: As :meth:`look_up`; None where it is another product.
        """
        x, y = pair
        first, second, grid = grids
        limits = grid.integer_limits(clip)
        for one, other, is_first in ((x, y, True), (y, x, False)):
            source, given, table = getattr(other, _SOURCE, (None, None, None))
            if source is not one:
                continue
            key = (id(table), *grids, limits)
            if key not in self._tables:
                points = _points(given, one)
                x, y = (points, table) if is_first else (table, points)
                steps = self._engine.multiply(x, y, first, second, grid)
                self._tables[key] = _on_grid(steps, grid, limits)
            return _read(self._tables[key], given, grid, one)
        return None


def _points(given: Grid, x: Tensor) -> Tensor:
    return torch.arange(given.low, given.high + 1, device=x.device).float()


def _on_grid(steps: Tensor, grid: Grid, limits: tuple[int, int]) -> Tensor:
    return round_tensor(steps, grid.rounding).clamp_(*limits).float()


def _read(table: Tensor, given: Grid, grid: Grid, x: Tensor) -> tuple[Tensor, Tensor]:
    if integer_kernels.takes_elements(x):
        return integer_kernels.look_up(x, table, given.low, grid.scale)
    integers = table[(x - given.low).long()]
    return integers, integers * grid.scale

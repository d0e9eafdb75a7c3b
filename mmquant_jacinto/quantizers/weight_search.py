"""Weight scales that lose least: searched once, before anything is quantized."""

import torch
from torch import Tensor

from ..registry import WEIGHT_OBSERVERS
from ..targets.formats import TensorFormat, integer_bounds
from .layers import Layer, channel_rows
from .weight_grids import WeightGrids

# Of the step that holds the largest weight. Below a quarter, what is cut off costs
# more than what is gained at any width.
FRACTIONS = tuple(1.0 - 0.02 * k for k in range(1, 39))
POWERS = (0.5, 0.25, 0.125)


@torch.no_grad()
def search_weight_scales(grids: WeightGrids) -> Tensor:
    """Steps that give the folded weights the least squared error.

    As section 3.1 of Nagel et al., A White Paper on Neural Network Quantization
    (arXiv 2106.08295). Candidates are fractions of the step that holds the largest
    weight, for each channel alone where the format is per channel.

    Args:
        grids (WeightGrids): Computed.

    Returns:
        Tensor: Of all layers, end to end: (C,).
    """
    return torch.cat(
        [_search(layer, grids.step(name)) for name, layer in grids.layers.items()]
    )


def _search(layer: Layer, step: Tensor) -> Tensor:
    fmt = layer.spec.format
    rows = channel_rows(layer, layer.scaled(layer.folded()[0]))
    best, least = step, _squared_error(rows, step, fmt)
    for fraction in POWERS if fmt.power_of_two else FRACTIONS:
        candidate = step * fraction
        error = _squared_error(rows, candidate, fmt)
        better = error < least
        best = torch.where(better, candidate, best)
        least = torch.where(better, error, least)
    return best


def _squared_error(rows: Tensor, step: Tensor, fmt: TensorFormat) -> Tensor:
    """Of each channel, or of the tensor in each of its channels: (C,)."""
    column = step[:, None]
    grid = (rows / column).round_().clamp_(*integer_bounds(fmt)).mul_(column)
    error = grid.sub_(rows).square_().sum(1)
    return error if fmt.per_channel else error.sum().expand_as(error)


class WeightObserver:
    """How the steps of weights are found; an entry of ``registry.WEIGHT_OBSERVERS``.

    Attributes:
        searches (bool): Whether they are found once, and stay; otherwise they follow
            the weights.
    """

    searches = False

    def search(self, grids: WeightGrids) -> Tensor:
        """Steps for all layers, end to end: (C,).

        Args:
            grids (WeightGrids): Those that hold the largest weights, computed.
        """
        return grids.all_steps


@WEIGHT_OBSERVERS.register_module(name='minmax')
class MinMaxWeightObserver(WeightObserver):
    """Grids hold the largest weight, and follow it."""


@WEIGHT_OBSERVERS.register_module(name='mse')
class SquaredErrorWeightObserver(WeightObserver):
    """Grids of least squared error, searched once."""

    searches = True

    def search(self, grids: WeightGrids) -> Tensor:
        return search_weight_scales(grids)

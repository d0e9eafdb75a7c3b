"""Conditioning: what is done to the weights once, before anything is quantized."""

from ...quantizers.equalize import equalize
from ...quantizers.weight_grids import WeightGrids
from ...quantizers.weights import constrain_weights
from ...registry import WEIGHT_OBSERVERS, look_up
from ..state import State


def compute_grids(grids: WeightGrids, state: State) -> None:
    """Computes the grids of all weights as they are now."""
    given = state.weight_scale
    if state.learned is not None:
        given = given * state.learned.factors()
    grids.compute(state.bias_correction, given)


def condition_once(state: State) -> None:
    """What is done to the weights in the first pass of a model's life.

    They are equalized and clamped, and the grids that do not follow the weights from
    then on are found.
    """
    change_once(state)
    name = state.plan.config.get('weight_observer', 'minmax')
    observer = look_up(WEIGHT_OBSERVERS, 'quantize.weight_observer', name)()
    fixed = observer.searches or state.learned is not None
    if fixed and not state.weight_scale.any():
        grids = WeightGrids(state.plan, state.layers, state.activations)
        compute_grids(grids, state)
        state.weight_scale.copy_(observer.search(grids))


def change_once(state: State) -> None:
    """Equalizes and clamps the weights, if they have not been yet."""
    if state.plan.pairs and not state.equalized:
        equalize(state.plan, state.layers)
        state.equalized.fill_(1)
    if state.plan.config['constrain_weights'] and not state.constrained:
        for layer in state.layers.values():
            constrain_weights(layer)
        state.constrained.fill_(1)

"""Weight correction: which layers' channels get the deviation that they have in float.

Rounded weights make some channels of a layer larger and others smaller. A calibration
multiplies each by the ratio of its standard deviations in float and quantized, as the
Jacinto devkit does.
"""

from ...config.widths import ENOUGH_BITS
from ...plan.network import last_layers
from ..state import State


def corrected_weights(state: State) -> frozenset[str]:
    """Layers whose weights a calibration corrects, by weight quantizer.

    Noise of the activations is deviation, too, and is answered by shrinking. Where all
    of them have 8 bits or more and weights a scale for each channel, of any value, that
    is little, and a layer is nearer to float with it. Of a layer whose result leaves
    the network, also through what has no weights, nothing is corrected: scores are
    compared with those of other channels, which would shrink by another ratio. Nor is
    it where steps do not follow the weights: a small factor moves no integer then.

    Args:
        state (State): Of the quantized model; ``calibration.weights`` True: all
            layers, None: by that rule, where biases are corrected in order.
    """
    plan, asked = state.plan, state.calibration.weights
    if asked is not None:
        return frozenset(plan.weights if asked else ())
    way = state.calibration.way_to_correct
    is_noisy = any(spec.format.bits < ENOUGH_BITS for spec in plan.activations)
    if way is None or not way.in_order or is_noisy or plan.is_learned:
        return frozenset()
    if state.weight_scale.any():
        return frozenset()
    last = last_layers(plan)
    return frozenset(
        name
        for name, spec in plan.weights.items()
        if name not in last and spec.format.per_channel and not spec.format.power_of_two
    )

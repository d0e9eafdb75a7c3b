"""Presets: the numeric formats that ``quantize.target`` stands for."""

from __future__ import annotations

from dataclasses import dataclass

from .formats import TensorFormat

# What engines of QDQ files have in common: scales of weights for each channel, and
# activations with a zero point.
PER_CHANNEL = TensorFormat(per_channel=True, narrow_range=True)
AFFINE = TensorFormat(symmetric=False)


@dataclass(frozen=True)
class Preset:
    """The numeric formats that a target trains and calibrates for.

    Args:
        weight (TensorFormat): Convolution and linear weights, after the batch
            normalization that follows has been folded into them.
        activation (TensorFormat): Every tensor computed inside the network.
        bias_bits (int, optional): Width of the bias in units of input scale
            times weight scale. None: twice the weight's width. In an accumulator
            of 32 bits 31 leave room for the products.
        constrain_bias (str, optional): What happens to a bias that does not
            fit: ``'saturate'`` clamps it, ``'reduce_weight_scale'`` makes the
            weights' grid coarser until it fits.
        constrain_weights (bool): Clamp outliers of the weights once, at the
            first step (see ``quantizers.weights.constrain_weights``).
        equalize (bool): Rescale channels between layers, once, at the first
            step (see ``quantizers.equalize``).
        observer (str): How ranges are measured, a name in ``registry.OBSERVERS``;
            which one, by ``benchmarks/default_observers.py``.
    """

    weight: TensorFormat
    activation: TensorFormat
    bias_bits: int | None = 31
    constrain_bias: str | None = 'reduce_weight_scale'
    constrain_weights: bool = False
    equalize: bool = False
    observer: str = 'moving_average'

"""Presets: the numeric formats that ``quantize.target`` stands for."""

from __future__ import annotations

from dataclasses import dataclass

from .formats import TensorFormat

# What engines of QDQ files have in common: scales of weights for each channel, and
# activations with a zero point.
PER_CHANNEL = TensorFormat(per_channel=True, narrow_range=True)
AFFINE = TensorFormat(symmetric=False)
# Widths of activations with so few steps that nothing is left for what is small when a
# grid holds all that was seen, and how ranges are found for them in a calibration.
FEW_BITS, FEW_BITS_OBSERVER = 6, 'mse'
# A grid of more bits has steps to spare: what it cuts off is most of its noise.
FINE_BITS = 8


@dataclass(frozen=True)
class Preset:
    """The numeric formats that a target trains and calibrates for.

    Args:
        weight (TensorFormat): Convolution and linear weights, after the batch
            normalization that follows has been folded into them.
        activation (TensorFormat): Every tensor computed inside the network.
        depthwise_per_channel (bool): Whether depthwise convolutions have a scale for
            each channel where ``weight`` has one for a tensor.
        bias_bits (int, optional): Width of the bias in units of input scale
            times weight scale. None: that of input and weight together. In an
            accumulator of 32 bits 31 leave room for the products.
        constrain_bias (str, optional): What happens to a bias that does not
            fit: ``'saturate'`` clamps it, ``'reduce_weight_scale'`` makes the
            weights' grid coarser until it fits.
        constrain_weights (bool): Clamp outliers of the weights once, at the
            first step (see ``quantizers.weights.constrain_weights``).
        equalize (bool): Rescale channels between layers, once, at the first
            step (see ``quantizers.equalize``).
        observer (str): How ranges follow a training, a name in
            ``registry.OBSERVERS``; which one, by ``benchmarks/default_observers.py``.
        calibration_observer (str, optional): How they are measured in a calibration,
            for more than :data:`FEW_BITS`; None: by ``observer``.
        calibration_fine_observer (str, optional): The same for tensors of more than
            :data:`FINE_BITS`, whatever the others have; it searches no ranges. None:
            as the others.
        calibration_weight_observer (str): How the grids of weights are found in a
            calibration, a name in ``registry.WEIGHT_OBSERVERS``; likewise.
    """

    weight: TensorFormat
    activation: TensorFormat
    depthwise_per_channel: bool = False
    bias_bits: int | None = 31
    constrain_bias: str | None = 'reduce_weight_scale'
    constrain_weights: bool = False
    equalize: bool = False
    observer: str = 'moving_average'
    calibration_observer: str | None = None
    calibration_fine_observer: str | None = None
    calibration_weight_observer: str = 'minmax'

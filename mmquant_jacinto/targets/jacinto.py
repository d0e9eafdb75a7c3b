"""Jacinto 7 with MMAv1 (TDA4VM): powers of two, one scale for each tensor.

What the PyTorch-Jacinto-AI-DevKit trains for. Its importer reads the ranges from the
file of ``--target tidl``.
"""

from ..registry import QUANT_TARGETS
from .fixed_point import FixedPoint
from .formats import HALF_AWAY, HALF_UP, TensorFormat
from .preset import Preset
from .rules import TDA4VM_RULES
from .target import Target


@QUANT_TARGETS.register_module(name='jacinto')
class Jacinto(Target):
    """The seed's own numbers."""

    preset = Preset(
        weight=TensorFormat(power_of_two=True, rounding=HALF_AWAY),
        activation=TensorFormat(
            power_of_two=True, unsigned_if_positive=True, rounding=HALF_UP
        ),
        depthwise_per_channel=True,
        bias_bits=None,
        observer='percentile',
        # Powers of two double a grid for one element that reaches further.
        calibration_observer='percentile',
        calibration_fine_observer='minmax',
        calibration_weight_observer='mse',
    )
    arithmetic = FixedPoint
    has_file = False
    rules = TDA4VM_RULES

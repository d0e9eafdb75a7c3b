"""Quantization's place in MMEngine: runner, loop, and how they are chosen."""

from .calibration_loop import CalibrationLoop
from .cpu_distributed import init_cpu_process_group, use_cpu_model_wrapper
from .quant_runner import QuantRunner
from .redirect import redirect_runner

__all__ = [
    'CalibrationLoop',
    'QuantRunner',
    'init_cpu_process_group',
    'redirect_runner',
    'use_cpu_model_wrapper',
]

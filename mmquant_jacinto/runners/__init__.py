"""Runners: quantization's place in MMEngine, and how a config gets there.

``redirect`` hands a config with a truthy ``quantize`` to ``quant_runner``, which wraps
the model for its phase; ``calibration_loop`` calibrates, on ``calibration_batches``;
``run_start`` says what a run starts from; ``checkpoint_files`` survive a kill;
``train_batches`` are equally many in each process; ``refusals`` say what cannot be
combined; ``upstream_fixes`` mend what breaks on current torch. Imports ``hooks`` and
what is before it.
"""

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

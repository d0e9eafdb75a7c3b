"""Quantization of OpenMMLab 2.x models by two lines of config."""

from . import mmdet_wrappers
from .compat import allow_mmengine_checkpoints, mend_ssd_head
from .config import QuantizeConfig
from .errors import QuantizeError
from .formats import PRESETS, Preset, TensorFormat
from .hooks import ExactResumeHook, QATHook
from .inference import keep_quantizers_when_loading
from .mmdet_wrappers import (
    MMDetQuantCalibrateModule,
    MMDetQuantTestModule,
    MMDetQuantTrainModule,
)
from .mmrazor_import import let_mmrazor_import
from .prepare import plan_model, quantize_model, unquantize_model
from .quantization import Quantization
from .runners import CalibrationLoop, QuantRunner, redirect_runner
from .version import __version__
from .wrappers import QuantCalibrateModule, QuantTestModule, QuantTrainModule

__all__ = [
    'CalibrationLoop',
    'ExactResumeHook',
    'QATHook',
    'QuantRunner',
    'MMDetQuantCalibrateModule',
    'MMDetQuantTestModule',
    'MMDetQuantTrainModule',
    'PRESETS',
    'Preset',
    'QuantCalibrateModule',
    'QuantTestModule',
    'QuantTrainModule',
    'Quantization',
    'QuantizeConfig',
    'QuantizeError',
    'TensorFormat',
    '__version__',
    'plan_model',
    'quantize_model',
    'unquantize_model',
]


def __getattr__(name: str) -> type:
    # The seed's plural names, which are deprecated.
    return getattr(mmdet_wrappers, name)


allow_mmengine_checkpoints()
mend_ssd_head()
redirect_runner()
keep_quantizers_when_loading()
let_mmrazor_import()

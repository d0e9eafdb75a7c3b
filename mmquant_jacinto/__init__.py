"""Quantization of OpenMMLab 2.x models by two lines of config.

The folders follow the data, and each imports only those before it (``.importlinter``):
``targets`` · ``config`` · ``record`` · ``plan`` · ``quantizers`` · ``execute`` ·
``methods`` · ``wrappers`` · ``hooks`` · ``runners`` · ``export``.
"""

from importlib.util import find_spec as _find_spec

if _find_spec('mmengine') is None:
    # No requirement of the package: OneDL's fork is installed under the same name.
    raise ImportError(
        "mmquant_jacinto needs MMEngine: `pip install 'mmquant_jacinto[openmmlab]'` "
        "for OpenMMLab's, `pip install 'mmquant_jacinto[onedl]'` for OneDL's fork of it"
    )

from .config.quantize_config import QuantizeConfig
from .errors import QuantizeError
from .execute.quantization import Quantization
from .hooks import ExactResumeHook, QATHook
from .quantizers.kernels import native
from .quantizers.mmrazor.importing import let_mmrazor_import
from .runners import CalibrationLoop, QuantRunner, redirect_runner
from .runners.upstream_fixes import (
    allow_mmengine_checkpoints,
    mend_scoped_collation,
    mend_ssd_head,
)
from .targets.formats import TensorFormat
from .targets.preset import Preset
from .targets.target import PRESETS
from .wrappers import mmdet_modules
from .wrappers.calibrate_module import QuantCalibrateModule
from .wrappers.library_apis import keep_quantizers_when_loading
from .wrappers.mmdet_modules import (
    MMDetQuantCalibrateModule,
    MMDetQuantTestModule,
    MMDetQuantTrainModule,
)
from .wrappers.prepare import plan_model, quantize_model, unquantize_model
from .wrappers.test_module import QuantTestModule
from .wrappers.train_module import QuantTrainModule

__version__ = '0.1.0'

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
    'native',
    'plan_model',
    'quantize_model',
    'unquantize_model',
]


def __getattr__(name: str) -> type:
    # The seed's plural names, which are deprecated.
    return getattr(mmdet_modules, name)


allow_mmengine_checkpoints()
mend_ssd_head()
mend_scoped_collation()
redirect_runner()
keep_quantizers_when_loading()
let_mmrazor_import()

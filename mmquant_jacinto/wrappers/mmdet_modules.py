"""The wrappers for mmdet's detectors, and which wrapper a model gets."""

import warnings
from typing import Any

from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from ..errors import QuantizeError
from .calibrate_module import QuantCalibrateModule
from .distillation import student_of
from .quant_module import QuantModule
from .test_module import QuantTestModule
from .train_module import QuantTrainModule

_BATCH_KEYS = ('inputs', 'data_samples')


class _MMDet(QuantModule):
    """What is particular to mmdet's detectors.

    A bare image tensor needs data samples beside it to be prepared on, and a call
    may be given a batch as the dataloader yields it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the detector, on a preprocessed batch or on a raw one."""
        inputs = kwargs.get('inputs')
        if isinstance(inputs, (list, tuple)) or (
            isinstance(inputs, Tensor) and not inputs.is_floating_point()
        ):
            batch = {key: kwargs[key] for key in _BATCH_KEYS if key in kwargs}
            data = self.module.data_preprocessor(batch, self.module.training)
            kwargs.update(data)
        return super().forward(*args, **kwargs)

    def as_batch(self, dummy_input: Any) -> Any:
        if not isinstance(dummy_input, Tensor):
            return dummy_input
        from mmdet.structures import DetDataSample

        images = dummy_input
        if images.dim() != 4:
            raise QuantizeError(
                f'the input has the shape {tuple(images.shape)}; give images '
                '(N, C, H, W), or a batch as the dataloader yields it'
            )
        height, width = images.shape[-2:]
        meta = dict(
            img_shape=(height, width),
            ori_shape=(height, width),
            pad_shape=(height, width),
            scale_factor=(1.0, 1.0),
            img_id=0,
            img_path='',
        )
        return dict(
            inputs=list(images),
            data_samples=[DetDataSample(metainfo=dict(meta)) for _ in images],
        )


@MODEL_WRAPPERS.register_module()
class MMDetQuantTrainModule(_MMDet, QuantTrainModule):
    """:class:`QuantTrainModule` for mmdet's detectors."""


@MODEL_WRAPPERS.register_module()
class MMDetQuantCalibrateModule(_MMDet, QuantCalibrateModule):
    """:class:`QuantCalibrateModule` for mmdet's detectors."""


@MODEL_WRAPPERS.register_module()
class MMDetQuantTestModule(_MMDet, QuantTestModule):
    """:class:`QuantTestModule` for mmdet's detectors."""


_KINDS = {
    'train': (QuantTrainModule, MMDetQuantTrainModule),
    'calibrate': (QuantCalibrateModule, MMDetQuantCalibrateModule),
    'test': (QuantTestModule, MMDetQuantTestModule),
}


def wrapper_class(model: nn.Module, phase: str) -> type[QuantModule]:
    """The wrapper for a model and a phase.

    Args:
        model (nn.Module): The float model.
        phase (str): ``'train'``, ``'calibrate'`` or ``'test'``.
    """
    general, mmdet = _KINDS[phase]
    classes = type(student_of(model)).__mro__
    names = {base.__module__.partition('.')[0] for base in classes}
    return mmdet if 'mmdet' in names else general


_PLURALS = {
    f'{cls.__name__}s': cls
    for cls in (MMDetQuantTrainModule, MMDetQuantCalibrateModule, MMDetQuantTestModule)
}


def __getattr__(name: str) -> Any:
    if name in _PLURALS:
        warnings.warn(
            f'{name} is deprecated, use {name[:-1]}', DeprecationWarning, stacklevel=2
        )
        return _PLURALS[name]
    raise AttributeError(name)

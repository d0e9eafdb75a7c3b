"""What breaks in the OpenMMLab set on current torch, mended on import."""

import functools
import importlib.util
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch.utils.data import DataLoader


def _history_buffer_attribute(owner: type, name: str) -> object:
    """Stands in for ``getattr``, by which a pickle names a class's functions."""
    if owner is not HistoryBuffer:
        raise TypeError(f'a checkpoint may not read {name!r} of {owner!r}')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

    From torch 2.6 on that is the default, and MMEngine does not pass another
    one; its checkpoints hold ``HistoryBuffer`` and numpy scalars. The check
    itself stays on.
    """
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    try:
        from numpy._core import multiarray
    except ImportError:
        from numpy.core import multiarray  # type: ignore[no-redef]
    names = 'float16 float32 float64 int8 uint8 int16 int32 int64 bool'
    dtypes = [type(np.dtype(name)) for name in names.split()]
    # NumPy 2 moved these two; a checkpoint may come from either.
    moved = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for core in ('core', '_core')
        for function in (multiarray._reconstruct, multiarray.scalar)
    ]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *dtypes,
            *moved,
            (_history_buffer_attribute, 'builtins.getattr'),
        ]
    )


def mend_ssd_head() -> None:
    """Gives mmdet's ``SSDHead`` the ``loss_cls`` that its prediction reads.

    mmdet 3.3.0 cannot test any SSD without. Does nothing where mmdet is
    absent, or sets it itself.
    """
    if importlib.util.find_spec('mmdet') is None:
        return
    try:
        from mmdet.models.dense_heads.ssd_head import SSDHead
    except ImportError:
        return
    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None


def mend_scoped_collation() -> None:
    """Lets configs that inherit from ``'mmyolo::...'`` name a function to collate with.

    MMEngine leaves the scope of such a base in each dict of it, and passes it on to
    the function as an argument, in float too.
    """
    original = Runner.build_dataloader

    @functools.wraps(original)
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        given = dataloader if isinstance(dataloader, dict) else {}
        collate = given.get('collate_fn')
        if isinstance(collate, dict) and '_scope_' in collate:
            plain = {key: value for key, value in collate.items() if key != '_scope_'}
            dataloader = {**given, 'collate_fn': plain}
        return original(dataloader, *args, **kwargs)

    Runner.build_dataloader = staticmethod(build_dataloader)

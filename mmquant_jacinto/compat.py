"""What breaks in the OpenMMLab set on current torch, mended on import."""

import importlib.util

import numpy as np
import torch


def allow_mmengine_checkpoints() -> None:
    """Lets ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

    From torch 2.6 on that is the default, and MMEngine does not pass another
    one; its checkpoints hold ``HistoryBuffer`` and numpy scalars. The check
    itself stays on.
    """
    if not hasattr(torch.serialization, 'add_safe_globals'):
        return
    from mmengine.logging.history_buffer import HistoryBuffer
    try:
        from numpy._core import multiarray
    except ImportError:
        from numpy.core import multiarray
    dtypes = [type(np.dtype(name)) for name in (
        'float16', 'float32', 'float64', 'int8', 'uint8', 'int16', 'int32',
        'int64', 'bool')]
    # NumPy 2 moved these; a checkpoint may come from either.
    moved = [(multiarray._reconstruct, f'numpy.{core}.multiarray._reconstruct')
             for core in ('core', '_core')]
    moved += [(multiarray.scalar, f'numpy.{core}.multiarray.scalar')
              for core in ('core', '_core')]
    plain = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    try:
        torch.serialization.add_safe_globals(plain + moved)
    except (TypeError, AttributeError):
        # torch 2.4 takes no (object, name) pairs.
        torch.serialization.add_safe_globals(
            plain + [multiarray._reconstruct, multiarray.scalar])


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

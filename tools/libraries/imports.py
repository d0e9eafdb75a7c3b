"""Imports OpenMMLab's libraries on current packages.

Their newest releases refuse an MMCV or MMDetection that they run on, and import
packages that are not to be had for a current Python or NumPy, for data sets and models
that most have no use for. What is done about it:

=============  ========================================================================
MMYOLO         asserts MMCV < 2.1: it sees 2.0.1
MMRotate       asserts MMDetection < 3.2: it sees 3.1.0; takes ``collections.Sequence``,
               which Python 3.10 dropped; e2cnn (of ReDet) has a stand-in
MMOCR          asserts MMDetection < 3.2: it sees 3.1.0; imgaug has a stand-in
MMPose         xtcocotools is pycocotools, which it is a copy of; chumpy has a stand-in
MMAction2      its wheel lacks ``localizers.drn``, which has a stand-in
MMDetection3D  the kits of nuScenes, Lyft and Waymo have stand-ins
all            torchvision, of which there is no CPU build in the registry
=============  ========================================================================

A stand-in can be imported from and does nothing; an installed package is never
replaced by one. For a config of MMPose, say, a file ``import_library.py`` in
``PYTHONPATH`` calls ``import_library('mmpose')``, and the config names it before ours::

    custom_imports = dict(imports=['import_library', 'mmquant_jacinto'])
"""

import collections
import collections.abc
import importlib
import importlib.util
import sys
from contextlib import ExitStack
from unittest import mock

import mmcv
import mmdet
from zoo.absent import stand_ins

from mmquant_jacinto import QuantizeError

LIBRARIES = {
    'mmpretrain': 'mmpretrain',
    'mmseg': 'mmsegmentation',
    'mmyolo': 'mmyolo',
    'mmpose': 'mmpose',
    'mmrotate': 'mmrotate',
    'mmocr': 'mmocr',
    'mmaction': 'mmaction2',
    'mmdet3d': 'mmdet3d',
}
ABSENT = (
    *('torchvision', 'chumpy', 'imgaug', 'e2cnn', 'decord', 'open3d'),
    *('nuscenes', 'lyft_dataset_sdk', 'waymo_open_dataset'),
    'mmaction.models.localizers.drn',
)
# Newest versions that all of them accept.
SEEN = ((mmcv, '2.0.1'), (mmdet, '3.1.0'))
PARTS = ('models', 'datasets', 'engine', 'evaluation', 'visualization')


def installed() -> list[str]:
    """Import names of the libraries that are there."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]


def import_library(name: str) -> None:
    """Imports a library, and registers all that its configs name.

    Args:
        name (str): Its import name.

    Raises:
        QuantizeError: If it is not installed, or cannot be imported.
    """
    if importlib.util.find_spec(name) is None:
        raise QuantizeError(
            f'{name} is not installed; pip install --no-deps {LIBRARIES[name]}, see '
            'requirements/libraries.txt'
        )
    with ExitStack() as stack:
        stack.enter_context(stand_ins(ABSENT))
        for module, version in SEEN:
            stack.enter_context(mock.patch.object(module, '__version__', version))
        sequence = dict(new=collections.abc.Sequence, create=True)
        stack.enter_context(mock.patch.object(collections, 'Sequence', **sequence))
        if importlib.util.find_spec('xtcocotools') is None:
            _use_pycocotools()
        try:
            if importlib.util.find_spec('mmpretrain') is not None:
                # Backbones of the others are its.
                importlib.import_module('mmpretrain.models')
            importlib.import_module(name)
            for part in PARTS:
                if importlib.util.find_spec(f'{name}.{part}') is not None:
                    importlib.import_module(f'{name}.{part}')
        except (ImportError, AssertionError, AttributeError) as error:
            raise QuantizeError(
                f'{name} cannot be imported: {type(error).__name__}: {error}'
            ) from error


def _use_pycocotools() -> None:
    for part in ('', '.coco', '.cocoeval', '.mask'):
        module = importlib.import_module(f'pycocotools{part}')
        sys.modules[f'xtcocotools{part}'] = module

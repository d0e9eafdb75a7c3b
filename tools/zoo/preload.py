"""Imported once, before the sweep's processes fork: it takes most of their time."""

import warnings

import torch

warnings.filterwarnings('ignore')
torch.set_num_threads(1)

from .configs import import_mmpretrain  # noqa: E402

import_mmpretrain()

import mmdet.models  # noqa: E402, F401

from . import check  # noqa: E402, F401

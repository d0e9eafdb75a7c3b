"""Imported once, before the sweep's processes fork: it takes most of their time."""

import warnings

import torch

warnings.filterwarnings('ignore')
torch.set_num_threads(1)

from zoo_configs import import_mmpretrain  # noqa: E402

import_mmpretrain()

import mmdet.models  # noqa: E402, F401
import zoo_check  # noqa: E402, F401

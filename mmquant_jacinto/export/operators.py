"""Operators: all torch functions that the exporter knows."""

from . import (
    elementwise_operators,
    layer_operators,
    shape_operators,
    spatial_operators,
)
from .translation import TRANSLATIONS

__all__ = [
    'TRANSLATIONS',
    'elementwise_operators',
    'layer_operators',
    'shape_operators',
    'spatial_operators',
]

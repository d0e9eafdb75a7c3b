"""Operators: all torch functions that the exporter knows."""

from . import arithmetic as arithmetic_operators
from . import elementwise as elementwise_operators
from . import indices as index_operators
from . import layer as layer_operators
from . import recurrent as recurrent_operators
from . import shape as shape_operators
from . import spatial as spatial_operators
from .translation import TRANSLATIONS

__all__ = [
    'TRANSLATIONS',
    'arithmetic_operators',
    'elementwise_operators',
    'index_operators',
    'layer_operators',
    'recurrent_operators',
    'shape_operators',
    'spatial_operators',
]

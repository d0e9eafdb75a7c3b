"""Methods: what a calibration may do beyond ranges and biases.

``rounding`` layer after layer (``reconstruction``), ``finetune`` of everything
together, and a width for each weight (``sensitivity``, ``bit_budget``,
``mixed_precision``). Imports ``execute`` and what is before it.
"""

# What it registers a config may name.
from . import rounding

__all__ = ['rounding']

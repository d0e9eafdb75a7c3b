"""Quantizers: from observed tensors to grids, and values onto them.

``observers`` and ``range_search`` find ranges, ``activation_grids`` and
``weight_grids`` make grids of them, ``kernels`` put values there; ``activations`` is
all quantizers of a model as one module, ``layers`` what is behind a quantized weight,
``mmrazor`` fake quantizers of others. Imports ``plan`` and what is before it.
"""

# What they register a config may name.
from . import observers, range_search, weight_search

__all__ = ['observers', 'range_search', 'weight_search']

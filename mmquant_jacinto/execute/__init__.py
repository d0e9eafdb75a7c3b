"""Execute: a model runs as its plan says.

``executor`` finds the step of each call and leaves it to a ``behaviour``:
``fake_quantize`` (training), ``calibrate`` (measuring and correcting), ``integer``
(what an engine computes). ``quantization`` is the module that a model carries. Imports
``quantizers`` and what is before it.
"""

# What it registers a config may name.
from .corrections import bias_correction

__all__ = ['bias_correction']

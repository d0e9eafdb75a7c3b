"""Report: a page that says where a quantized network loses, why, and what helps."""

from .content import Report
from .measuring.measurement import Measurement, describe

__all__ = ['Measurement', 'Report', 'describe']

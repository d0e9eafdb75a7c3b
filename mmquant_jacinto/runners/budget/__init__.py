"""Budgets that a calibration keeps: of accuracy, and of time."""

from .accuracy import BudgetKeeper
from .latency import LatencyKeeper

__all__ = ['BudgetKeeper', 'LatencyKeeper']

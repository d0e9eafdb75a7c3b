"""Budgets: what is raised above the bits asked for, to keep a score, a size, a time."""

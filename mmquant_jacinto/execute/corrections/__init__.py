"""Corrections: what calibration adds to biases, and divides channels by."""

"""Wrappers: a float model and its quantization, for training, calibration and test.

``prepare`` records and plans, ``quant_module`` is the base, ``library_apis`` gives
``init_detector`` and its kin quantized checkpoints. Imports ``methods`` and what is
before it.
"""

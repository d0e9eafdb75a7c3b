"""Wrappers: a float model and its quantization, for training, calibration and test.

``prepare`` records and plans, ``quant_module`` is the base, ``call_arguments`` and
``random_image`` fit what a model takes, ``library_apis`` gives ``init_detector`` and
its kin quantized checkpoints. Imports ``methods`` and what is before it.
"""

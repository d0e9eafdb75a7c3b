"""Plan: from a recorded graph to what is quantized where, as plain data.

``fusion`` says what a target computes as one operation (a ReLU belongs to its
convolution), ``activation_specs`` which tensors share a grid, ``planner`` makes the
``plan`` that a checkpoint carries. Imports ``config``, ``record`` and ``targets``.
"""

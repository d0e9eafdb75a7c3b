"""Config: the ``quantize`` key, its short forms, its sections and their errors.

Imports ``targets`` and ``registry``, by which it checks what a key names.
"""

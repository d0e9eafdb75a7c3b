"""Measuring: float and quantized network on the same images.

``signals`` compares them step by step, ``gradients`` says what the outputs feel of each
step, ``trials`` runs other settings, ``sensitivity`` other widths; ``measurement``
makes a report's layers of it, within a time limit.
"""

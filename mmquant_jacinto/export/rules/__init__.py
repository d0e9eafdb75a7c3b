"""What an engine's table says of an ONNX file, ours or another.

``operations`` reads a file as operators between grids, ``check`` holds each against the
rows of :mod:`~mmquant_jacinto.targets.rules`, ``report`` writes what was found.
"""

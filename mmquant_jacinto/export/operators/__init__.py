"""Operators: a torch function as ONNX nodes, one file for each family."""

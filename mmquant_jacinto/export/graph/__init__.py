"""Graph: an ONNX graph while it is written: nodes, names, inputs and outputs."""

"""Integer: the arithmetic of the deployed network, on tensors that carry integers."""

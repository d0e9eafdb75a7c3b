"""The libraries of OpenMMLab beside MMDetection: which of their models quantize."""

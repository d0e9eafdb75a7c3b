"""The seed's modules: a model wrapped for training, calibration or test."""

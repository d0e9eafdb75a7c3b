"""Statistics: what steps and calibrations have seen of activations, merged."""

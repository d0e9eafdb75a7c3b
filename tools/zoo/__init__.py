"""The zoo of MMDetection: which models run, quantize, export, and how well."""

"""Artifacts: what goes beside a file, for the importer of an engine."""

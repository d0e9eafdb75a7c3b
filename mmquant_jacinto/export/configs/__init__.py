"""Configs: what exporting, and testing a file, need of a user's config."""

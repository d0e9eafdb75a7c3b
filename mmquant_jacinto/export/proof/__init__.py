"""Proof: the file runs in its engine, and gives what the integer model gives."""

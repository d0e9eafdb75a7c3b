"""Rewrites: what ``Target.finish`` changes in a written file for one engine."""

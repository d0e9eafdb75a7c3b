"""Folders of the repository that tests read from and run scripts of."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parent.parent
TOOLS = ROOT / 'tools'
BENCHMARKS = ROOT / 'benchmarks'
CONFIGS = ROOT / 'configs'

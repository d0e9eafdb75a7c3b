from pathlib import Path
from runpy import run_path

from setuptools import setup

# Run by its path: importing the package would need torch at build time.
VERSION_FILE = Path(__file__).parent / 'mmquant_jacinto' / 'version.py'

setup(version=run_path(str(VERSION_FILE))['__version__'])

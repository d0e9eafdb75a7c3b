from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup

# Run by its path: importing the package would need torch at build time.
VERSION_FILE = Path(__file__).parent / 'mmquant_jacinto' / 'version.py'

# Plain C that is loaded with ctypes. Optional: without a compiler the package is
# installed all the same, and torch's operations do the work.
KERNELS = Extension(
    'mmquant_jacinto._kernels',
    ['mmquant_jacinto/csrc/kernels.c'],
    extra_compile_args=[
        '-O3',
        '-fopenmp',
        '-ffp-contract=off',
        '-fno-math-errno',
        '-fno-trapping-math',
    ],
    extra_link_args=['-fopenmp'],
    optional=True,
)

setup(
    version=run_path(str(VERSION_FILE))['__version__'],
    ext_modules=[KERNELS],
)

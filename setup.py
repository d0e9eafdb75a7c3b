from setuptools import Extension, setup

# Plain C that is loaded with ctypes. Optional: without a compiler the package is
# installed all the same, and torch's operations do the work.
KERNELS = Extension(
    'mmquant_jacinto.quantizers.kernels._native',
    ['mmquant_jacinto/quantizers/kernels/csrc/kernels.c'],
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

setup(ext_modules=[KERNELS])

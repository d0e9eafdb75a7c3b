"""What setup.cfg cannot say: the kernels, MIM's folder, archives of equal bytes."""

import gzip
import logging
import os
import shutil
import tarfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

# Plain C that is loaded with ctypes. Optional: without a compiler the package is
# installed all the same, and torch's operations do the work. Without debugging
# symbols, which hold the folder that it was compiled in.
KERNELS = Extension(
    'mmquant_jacinto.quantizers.kernels._native',
    ['mmquant_jacinto/quantizers/kernels/csrc/kernels.c'],
    extra_compile_args=[
        '-O3',
        '-g0',
        '-fopenmp',
        '-ffp-contract=off',
        '-fno-math-errno',
        '-fno-trapping-math',
    ],
    extra_link_args=['-fopenmp'],
    optional=True,
)
# What `mim run`, `mim train` and `mim search` look for in a package's `.mim`. Scripts
# that measure the repository itself stay in it.
MIM = ('configs', 'tools', 'model-index.yml')
NOT_IN_MIM = ('__pycache__', 'gpu', 'gpu_check*', 'zoo', 'sweep.py')


class BuildKernels(build_ext):
    """Compiles the kernels to one file for every version of Python."""

    def run(self):
        if self.inplace:
            # Of an earlier version; Python finds it before the one without a tag.
            kernels = Path('mmquant_jacinto', 'quantizers', 'kernels')
            for outdated in kernels.glob('_native.*.so'):
                outdated.unlink()
        super().run()

    def get_ext_filename(self, fullname):
        suffix = '.pyd' if os.name == 'nt' else '.so'
        return os.path.join(*fullname.split('.')) + suffix

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception:
            logging.warning(
                'mmquant_jacinto: the kernels in C were not compiled (no C compiler '
                "with OpenMP?). Everything works without them, by torch's operations; "
                'a quantized training step on a CPU takes longer.'
            )
            raise


class BuildWithMim(build_py):
    """Puts configs and tools where MIM finds them."""

    def run(self):
        super().run()
        # MIM looks beside the package's metadata: never into a checkout.
        if not getattr(self, 'editable_mode', False):
            self.copy()

    def copy(self):
        folder = Path(self.build_lib, 'mmquant_jacinto', '.mim')
        # What a build before this one left.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in MIM:
            if os.path.isdir(name):
                ignore = shutil.ignore_patterns(*NOT_IN_MIM)
                shutil.copytree(name, folder / name, ignore=ignore)
            else:
                shutil.copy2(name, folder / name)


class Wheel(bdist_wheel):
    """A wheel for every version of Python: what is compiled does not know Python."""

    def run(self):
        # Modes of files are in the wheel: those of a usual user's, whoever builds it.
        before = os.umask(0o022)
        super().run()
        os.umask(before)

    def get_tag(self):
        return 'py3', 'none', super().get_tag()[2]


class SourceArchive(sdist):
    """An archive whose bytes follow from its contents and SOURCE_DATE_EPOCH."""

    def make_archive(self, base_name, format, *args, base_dir=None, **kwargs):
        epoch = os.environ.get('SOURCE_DATE_EPOCH')
        if epoch is None or format != 'gztar':
            return super().make_archive(
                base_name, format, *args, base_dir=base_dir, **kwargs
            )

        def plain(entry):
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ''
            entry.mtime = int(epoch)
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        path = base_name + '.tar.gz'
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        with open(path, 'wb') as file:
            with gzip.GzipFile('', 'wb', 9, file, int(epoch)) as packed:
                with tarfile.open(fileobj=packed, mode='w') as archive:
                    # Its entries in the order of their names.
                    archive.add(base_dir, filter=plain)
        return path


setup(
    ext_modules=[KERNELS],
    cmdclass={
        'build_ext': BuildKernels,
        'build_py': BuildWithMim,
        'bdist_wheel': Wheel,
        'sdist': SourceArchive,
    },
)

"""Packs what a machine with a GPU and without a network lacks."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 60 * 2**20
PYTHON = '3.12'
# The machine has torch, numpy, scipy, OpenCV, matplotlib, onnx and pytest.
PACKAGES = (
    *('addict', 'mmengine', 'platformdirs', 'pycocotools', 'setuptools', 'shapely'),
    *('termcolor', 'terminaltables', 'yapf'),
)


def pins() -> dict[str, str]:
    """Requirements by name, the first of each: that of the newest Python."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / 'requirements').glob('*.txt')):
        for line in path.read_text().splitlines():
            requirement = line.partition(';')[0].partition('#')[0].strip()
            name = re.split(r'[=<>]', requirement)[0]
            found.setdefault(name, requirement)
    return found


def download(folder: Path, *options: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps']
    subprocess.run([*command, '--dest', str(folder), *options], check=True)


def pack(folder: Path) -> None:
    """Fills a folder with wheels and sources.

    What an earlier run compiled stays, if it was put into ``mmcv``, and is used.

    Args:
        folder (Path): Where to.
    """
    known = pins()
    wheels = ['--only-binary=:all:', '--python-version', PYTHON]
    wheels += ['--implementation', 'cp']
    for version in ('2_28', '2_27', '2_24', '2_17'):
        wheels += ['--platform', f'manylinux_{version}_x86_64']
    wheels += ['--platform', 'manylinux2014_x86_64']
    for name in ('wheels', 'mmdet', 'sources'):
        shutil.rmtree(folder / name, ignore_errors=True)
    requirements = [known.get(name, name) for name in PACKAGES]
    download(folder / 'wheels', *wheels, *requirements)
    # Apart: it cannot be imported before mmcv is compiled.
    download(folder / 'mmdet', *wheels, known['mmdet'])
    sources = ['--no-build-isolation', '--no-binary', 'mmcv', known['mmcv']]
    download(folder / 'sources', *sources)
    size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    print(f'{folder}: {size / 2**20:.1f} MiB')
    if size > LARGEST:
        raise SystemExit(f'more than {LARGEST / 2**20:.0f} MiB')

"""The package as others get it: archives, built and installed and used elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from paths import HELPERS, ROOT

pytest.importorskip('build')
EPOCH = '1767225600'
SOURCES = (
    'configs demo mmquant_jacinto tools CHANGELOG.md LICENSE MANIFEST.in README.md '
    'model-index.yml pyproject.toml setup.cfg setup.py'
).split()
ENGINE = (
    'record/test_recorder.py',
    'execute/integer/test_integer.py',
)
# What a user of the installed package does, in a folder that has nothing of ours.
USE = """
import json
import torch
import mmquant_jacinto as q
torch.manual_seed(0)
def network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
image = torch.rand(2, 3, 16, 16)
model = network().eval()
before = model(image)
calibrated = q.QuantCalibrateModule(model, dummy_input=image, bits=16)
calibrated.train()(image)
calibrated.eval()
tested = q.QuantTestModule(network()).eval()
tested.module.load_state_dict(calibrated.module.state_dict())
with torch.no_grad():
    noise = (tested(image) - before).square().mean() / before.square().mean()
print(json.dumps(dict(
    file=q.__file__, kernels=q.native.is_built(), version=q.__version__,
    noise=float(noise),
)))
"""


def run(line, folder, **variables):
    """Run a command that must reach no host; returns what it prints."""
    kept = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'CC')}
    done = subprocess.run(
        [str(word) for word in line],
        cwd=folder,
        env={**kept, 'OMP_NUM_THREADS': '1', 'PIP_NO_INDEX': '1', **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def build(source, out, *options, **variables):
    line = [sys.executable, '-m', 'build', '--no-isolation', '--skip-dependency-check']
    return run([*line, *options, '-o', out, source], out.parent, **variables)


def checkout(folder):
    """A copy of what the package is built from, without what was built in place."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns('__pycache__', '*.so')
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder)
    return folder


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    """Source archive and wheel, of a checkout."""
    root = tmp_path_factory.mktemp('archives')
    build(checkout(root / 'source'), root / 'dist', SOURCE_DATE_EPOCH=EPOCH)
    return root / 'dist'


@pytest.fixture(scope='module')
def wheel(archives):
    return next(archives.glob('*.whl'))


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """An environment with the wheel, whose other packages are those of this one."""
    root = tmp_path_factory.mktemp('environment')
    venv.create(root, with_pip=False, symlinks=True)
    python = root / 'bin' / 'python'
    paths = sysconfig.get_paths(vars=dict(base=str(root), platbase=str(root)))
    folder = Path(paths['purelib'])
    # Their .pth files are not read, and so neither is our editable installation.
    others = [path for path in sys.path if Path(path).name == 'site-packages']
    (folder / 'others.pth').write_text('\n'.join(others))
    pip = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index']
    run([*pip, '--target', folder, wheel], root)
    return python


def test_bytes_follow_from_the_checkout(archives, tmp_path):
    again = tmp_path / 'dist'
    before = os.umask(0o077)
    try:
        build(checkout(tmp_path / 'elsewhere'), again, SOURCE_DATE_EPOCH=EPOCH)
    finally:
        os.umask(before)
    names = sorted(path.name for path in archives.iterdir())
    assert names == sorted(path.name for path in again.iterdir()) and len(names) == 2
    for name in names:
        assert (archives / name).read_bytes() == (again / name).read_bytes(), name


def test_descriptions_are_what_an_index_accepts(archives):
    pytest.importorskip('twine')
    line = [sys.executable, '-m', 'twine', 'check', '--strict', *archives.iterdir()]
    assert run(line, archives).count('PASSED') == 2


def test_wheel_has_types_kernels_and_what_mim_looks_for(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split('/', 1)[1] for name in archive.namelist()}
    assert {
        'py.typed',
        'quantizers/kernels/_native.so',
        '.mim/model-index.yml',
        '.mim/tools/export.py',
        '.mim/configs/bccd/metafile.yml',
    } <= names
    assert not [name for name in names if 'csrc' in name or 'zoo' in name]


def test_source_archive_builds_without_git(archives):
    with tarfile.open(next(archives.glob('*.tar.gz'))) as archive:
        names = {name.split('/', 1)[-1] for name in archive.getnames()}
    assert {'model-index.yml', 'configs/bccd/README.md', 'CHANGELOG.md'} <= names


def test_engine_of_the_wheel_quantizes(python, tmp_path):
    found = json.loads(
        run([python, '-W', 'ignore', '-c', USE], tmp_path).splitlines()[-1]
    )
    assert str(python.parent.parent) in found['file']
    assert found['kernels'] and found['version'] == '0.1.0'
    assert found['noise'] < 1e-5


def test_tests_of_the_engine_pass_on_the_wheel(python, tmp_path):
    tests = HELPERS.parent
    shutil.copytree(HELPERS, tmp_path / 'helpers')
    for name in ('conftest.py', *ENGINE):
        shutil.copy2(tests / name, tmp_path)
    options = '-c /dev/null -q -p no:cacheprovider --import-mode=importlib'.split()
    line = [python, '-m', 'pytest', *options, '--rootdir', tmp_path, tmp_path]
    assert ' passed' in run(line, tmp_path, PYTHONPATH=str(tmp_path / 'helpers'))


def test_mim_finds_configs_and_tools(python, tmp_path):
    pytest.importorskip('mim')
    mim = [python, '-W', 'ignore', '-m', 'mim']
    home = dict(HOME=str(tmp_path), PYTHONWARNINGS='ignore')
    found = run([*mim, 'search', 'mmquant_jacinto', '--valid-config'], tmp_path, **home)
    assert 'bccd_ssd_mobilenet_fpn_ptq' in found
    configs = next(python.parent.parent.rglob('.mim')) / 'configs'
    line = [
        'run',
        'mmquant_jacinto',
        'print_plan',
        configs / 'bccd/ssd_resnet_fpn_ptq.py',
    ]
    assert 'weight backbone.conv1: int8' in run([*mim, *line], tmp_path, **home)


def test_no_compiler_is_no_hindrance(tmp_path):
    source = checkout(tmp_path / 'source')
    said = build(source, tmp_path / 'dist', '--wheel', CC='/no/compiler/here')
    assert 'Everything works without them' in said
    with zipfile.ZipFile(next((tmp_path / 'dist').glob('*.whl'))) as archive:
        assert not [name for name in archive.namelist() if name.endswith('.so')]


def test_without_mmengine_the_import_says_what_to_install(tmp_path):
    hide = "import sys; sys.modules['mmengine'] = None; import mmquant_jacinto"
    done = subprocess.run(
        [sys.executable, '-c', hide],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1].startswith('ImportError: mmquant_jacinto needs')
    assert 'mmquant_jacinto[openmmlab]' in done.stderr
    assert 'mmquant_jacinto[onedl]' in done.stderr

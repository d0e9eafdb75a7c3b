"""The folders are the architecture: how many there are, and who imports whom."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / 'mmquant_jacinto'
MOST = 15


def entries(folder):
    return [
        path
        for path in folder.iterdir()
        if path.name not in ('__pycache__', 'py.typed') and path.suffix != '.so'
    ]


def test_folders_import_those_before_them():
    command = shutil.which('lint-imports', path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip('import-linter is not installed')
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_folder_holds_more_than_can_be_named():
    folders = [PACKAGE, *(path.parent for path in PACKAGE.rglob('__init__.py'))]
    assert {f.name: len(entries(f)) for f in folders if len(entries(f)) > MOST} == {}


def test_each_folder_says_what_is_in_it():
    silent = [
        path.parent.name
        for path in PACKAGE.rglob('__init__.py')
        if not path.read_text().startswith('"""')
    ]
    assert silent == []

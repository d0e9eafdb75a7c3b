"""The site is built without a warning, and what its pages name exists."""

import re
import subprocess
import sys

import pytest
from paths import ROOT

DOCS = ROOT / 'docs'


def test_site_is_built_without_a_warning(tmp_path):
    for package in ('sphinx', 'myst_parser', 'furo'):
        pytest.importorskip(package)
    line = [sys.executable, '-W', 'ignore', '-m', 'sphinx', '-q', '-W', '--keep-going']
    done = subprocess.run(
        [*line, '-c', str(DOCS / 'en'), str(DOCS), str(tmp_path / 'html')],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    page = (tmp_path / 'html' / 'en' / 'api.html').read_text()
    for name in ('QuantizeConfig', 'QuantRunner', 'OBSERVERS', 'export_onnx'):
        assert name in page


PAGES = sorted(DOCS.rglob('*.md'))


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_files_that_commands_name_exist(page):
    blocks = re.findall(r'```bash\n(.*?)```', page.read_text(), re.S)
    named = re.findall(
        r'\b(?:tools|benchmarks|configs)/[\w./]+\.(?:py|sh)\b', str(blocks)
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    links = re.findall(r'\]\((?!https?:|#)([^)#\s]+)', page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []

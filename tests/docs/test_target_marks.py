"""Every target has one mark wherever it is named: executed, checked, written only."""

import re

import pytest
from paths import ROOT

from mmquant_jacinto.registry import QUANT_TARGETS

MARKS = {
    'executed': 'Executed.',
    'checked, not executed': 'Checked, not executed.',
    'written only': 'Written only.',
}


def marks_of(path, pattern):
    text = (ROOT / path).read_text()
    return dict(re.findall(pattern, text, re.M))


def test_every_target_is_marked_on_all_pages():
    on_page = marks_of('docs/targets.md', r'^\| `(\w+)` \| ([a-z, ]+) \|')
    in_readme = marks_of('README.md', r'^\| `(\w+)`.*\| \*\*([a-z, ]+)\*\*')
    assert on_page.keys() == in_readme.keys()
    assert on_page == in_readme
    ours = {
        name
        for name, target in QUANT_TARGETS.module_dict.items()
        if target.__module__.startswith('mmquant_jacinto.')
    }
    assert on_page.keys() == ours


@pytest.mark.parametrize(
    'name', ['jacinto', 'onnxruntime', 'openvino', 'tensorrt', 'tidl']
)
def test_page_of_a_target_begins_with_its_mark(name):
    mark = marks_of('docs/targets.md', r'^\| `(\w+)` \| ([a-z, ]+) \|')[name]
    page = (ROOT / 'docs/en/targets' / f'{name}.md').read_text()
    assert f'**{MARKS[mark]}**' in page

"""What folders of configs say of themselves is what was measured."""

import pytest
from paths import CONFIGS, ROOT

pytest.importorskip('mmdet')
import config_pages  # noqa: E402


@pytest.fixture(scope='module')
def pages():
    return config_pages.pages()


def test_pages_are_up_to_date(pages):
    outdated = [path for path, text in pages.items() if path.read_text() != text]
    assert outdated == [], 'run `python benchmarks/config_pages.py`'


def test_each_folder_of_configs_has_its_pages(pages):
    folders = {path.parent for path in CONFIGS.glob('*/*.py')} - {CONFIGS / '_base_'}
    assert {p.parent for p in pages} - {ROOT} == folders


def test_each_config_is_in_the_table_of_its_folder(pages):
    for path in CONFIGS.glob('*/*.py'):
        if path.parent.name != '_base_':
            assert f'| `{path.name}` |' in pages[path.parent / 'README.md']


def test_scores_are_those_of_the_results():
    row = dict(arch='x', row='int8_jacinto_qat', mAP50=dict(mean=71.26))
    row['mAP'] = dict(mean=40.0)
    scores = config_pages.bccd_scores('ssd_x_fpn_qat', dict(summary=[row]))
    assert scores == {'mAP50': 71.26, 'mAP': 40.0}
    entry = config_pages.Entry('a.py', '8', 'jacinto', 'QAT', scores)
    assert entry.line().endswith('| QAT | 71.3 | 40.0 |')
    assert config_pages.bccd_scores('ssd_x_fpn', dict(summary=[row])) == {}


def test_mim_reads_the_index():
    model_index = pytest.importorskip('modelindex.load_model_index')
    index = model_index.load(str(ROOT / 'model-index.yml'))
    models = {model.name: model for model in index.models}
    assert len(models) == len(index.models)
    assert models['bccd_ssd_mobilenet_fpn_qat'].metadata.data['Bits'] == 8
    for model in index.models:
        assert (ROOT / model.config).is_file()

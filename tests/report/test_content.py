"""report.json: what the documented schema says, for any numbers."""

import json
import math
import re
from dataclasses import fields, is_dataclass

import pytest
from paths import ROOT
from reports import made_up

from mmquant_jacinto.report import content

CLASSES = [
    item
    for item in vars(content).values()
    if isinstance(item, type) and is_dataclass(item)
]


def test_json_has_the_fields_of_the_dataclasses():
    report = made_up()
    found = json.loads(report.to_json())
    assert found.pop('version') == content.VERSION
    assert list(found) == [field.name for field in fields(content.Report)]
    row = found['layers'][0]
    assert list(row) == [field.name for field in fields(content.LayerReport)]
    assert row['weight']['histogram']['float_counts'] == [0] * 40
    assert found['findings'][0]['remedy'] == 'bits=16'


def test_numbers_that_are_none_are_null():
    report = made_up(outputs={'a': math.inf, 'b': math.nan, 'c': 1 / 3})
    found = json.loads(report.to_json())
    assert found['outputs'] == {'a': None, 'b': None, 'c': 0.33333}
    assert set(report.scalars()) == {
        'report/output_snr/c',
        'report/mAP50/float',
        'report/mAP50/quantized',
    }


@pytest.mark.parametrize('kind', CLASSES, ids=lambda kind: kind.__name__)
def test_each_field_is_documented(kind):
    documented = re.findall(r'^\s{4,8}(\w+) \(', kind.__doc__, flags=re.MULTILINE)
    names = [field.name for field in fields(kind)]
    if kind is not content.Histogram and documented != names:
        raise AssertionError(set(documented) ^ set(names))
    page = (ROOT / 'docs' / 'report.md').read_text()
    assert all(f'`{name}`' in page for name in names)

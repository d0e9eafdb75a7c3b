"""The JSON schema of ``quantize`` says what its classes say."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
from paths import ROOT

from mmquant_jacinto import QuantizeConfig, QuantizeError

validation = pytest.importorskip('jsonschema')
SCHEMA = json.loads((ROOT / 'docs' / 'quantize.schema.json').read_text())
RIGHT = [
    True,
    'calibration',
    None,
    dict(),
    dict(mode='ptq', bits=16),
    dict(bits=dict(weight=4, activation=8), target='onnxruntime'),
    dict(overrides={'neck': False, 'head.*': 16, 'stem': dict(weight=8)}),
    dict(mode='ptq', rounding='adaround', calibration=dict(bias_correction=False)),
    dict(mode='ptq', rounding=dict(method='adaround', lr=0.1), finetune=False),
    dict(learned_scale=True, freeze=dict(bn=False, ranges=4)),
    dict(mode='ptq', finetune=dict(iterations=10), per_channel='depthwise'),
    dict(mode='ptq', mixed_precision=dict(average_bits=5.0, candidates=[4, 8])),
    dict(mode='ptq', max_drop=0.5),
    dict(mode='ptq', max_drop=dict(metric='coco/bbox_mAP', points=1, scorings=9)),
    dict(constrain_bias=False, constrain_weights=True, observer='minmax'),
]
WRONG = [
    dict(mode='ptq', max_drop=dict(point=1)),
    dict(mode='ptq', max_drop=dict(metric='coco/bbox_mAP')),
    'trainin',
    dict(mod='qat'),
    dict(mode='QAT'),
    dict(bits=1),
    dict(bits=dict(weights=8)),
    dict(overrides={'neck': True}),
    dict(calibration=dict(num_image=3)),
    dict(calibration=5),
    dict(constrain_bias='clip'),
    dict(learned_scale='yes'),
]


def test_file_is_up_to_date():
    command = 'python -m mmquant_jacinto.config.schema > docs/quantize.schema.json'
    line = [sys.executable, '-W', 'ignore', '-m', 'mmquant_jacinto.config.schema']
    # In a process of its own: other tests register targets and observers of theirs.
    made = json.loads(subprocess.check_output(line, cwd=ROOT))
    assert made == SCHEMA, f'run `{command}`'


@pytest.mark.parametrize('value', RIGHT, ids=str)
def test_what_is_right_is_right_in_both(value):
    QuantizeConfig.parse(value)
    validation.validate(value, SCHEMA)


@pytest.mark.parametrize('value', WRONG, ids=str)
def test_what_is_wrong_is_wrong_in_both(value):
    with pytest.raises(QuantizeError):
        QuantizeConfig.parse(value)
    with pytest.raises(validation.ValidationError):
        validation.validate(value, SCHEMA)


def test_every_key_is_described():
    validation.Draft202012Validator.check_schema(SCHEMA)
    keys = SCHEMA['anyOf'][0]['properties']
    assert set(keys) == {item.name for item in fields(QuantizeConfig)}
    assert all(len(key['description']) > 10 for key in keys.values())

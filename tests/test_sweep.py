"""The sweep over MMDetection's zoo, on two small models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

ROOT = Path(__file__).parent.parent
CONFIGS = ['detr/detr_r18_8xb2-500e_coco.py', 'ssd/ssdlite_mobilenetv2*.py']


def sweep(folder, *arguments):
    command = [sys.executable, 'tools/sweep.py', *arguments]
    command += ['--work-dir', str(folder), '--table', str(folder / 'zoo.md')]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_sweep_examines_models_and_goes_on_where_it_was(tmp_path):
    out = sweep(tmp_path, *CONFIGS, '--json', str(tmp_path / 'zoo.json'))
    assert '2 models, 2 to examine' in out
    reports = json.loads((tmp_path / 'zoo.json').read_text())
    for report in reports:
        assert report['status'] == 'ok', report.get('error')
        assert report['reload'] is True
        assert report['qat']['finite']
        assert report['qat']['lost_gradients'] == report['qat']['new_gradients'] == []
        assert report['sqnr']['16']['least'] > 55
        assert report['sqnr']['8']['least'] > 15
        assert {item['kind'] for item in report['in_float'].values()} <= {'Embedding'}
    # All convolutions and linear layers, projections of attention among them.
    assert [report['weights'] for report in reports] == [121, 88]
    assert [report['config'].partition('/')[0] for report in reports] == ['detr', 'ssd']

    table = (tmp_path / 'zoo.md').read_text()
    assert '2 run quantized, 2 of them without any shortfall' in table
    assert 'query_embedding.weight' in table
    # Nothing has changed, so nothing is examined again.
    assert '2 models, 0 to examine' in sweep(tmp_path, *CONFIGS)


def test_model_that_breaks_does_not_stop_the_sweep(tmp_path):
    out = sweep(tmp_path, CONFIGS[0], '--timeout', '0.1')
    assert 'took more than 0.1 s' in out
    assert '1 do not run quantized' in (tmp_path / 'zoo.md').read_text()

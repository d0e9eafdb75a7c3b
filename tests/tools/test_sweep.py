"""The sweep over MMDetection's zoo, on two small models."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT
from run_tools import python_path
from sweep import is_done
from zoo import violations
from zoo.report import (
    _commands_in_short,
    _equal,
    _exports,
    _predicted,
    shortfalls,
)

pytest.importorskip('mmdet')

CONFIGS = ['detr/detr_r18_8xb2-500e_coco.py', 'ssd/ssdlite_mobilenetv2*.py']


def sweep(folder, *arguments):
    command = [sys.executable, 'tools/sweep.py', *arguments]
    command += ['--work-dir', str(folder), '--table', str(folder / 'zoo.md')]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': python_path(ROOT)},
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

    pytest.importorskip('onnxruntime')
    out = sweep(tmp_path, CONFIGS[1], '--export', '--json', str(tmp_path / 'zoo.json'))
    assert '1 models, 1 to examine' in out
    after = json.loads((tmp_path / 'zoo.json').read_text())
    assert [report.pop('export', {}).get('equal') for report in after] == [None, 1.0]
    assert after == reports
    table = (tmp_path / 'zoo.md').read_text()
    row = '| yes | {} | – | {} |\n'
    none = ' | '.join('–––')
    assert table.count(row.format('–', none)) == 1
    assert table.count(row.format('100 %', none)) == 1

    out = sweep(tmp_path, CONFIGS[1], '--rules', '--json', str(tmp_path / 'zoo.json'))
    assert '1 models, 1 to examine' in out
    assert 'tidl 0 (0 in float), tensorrt 0 (0 in float), openvino 0' in out
    ended = json.loads((tmp_path / 'zoo.json').read_text())
    found = [report.pop('rules', None) for report in ended]
    assert found[0] is None and found[1]['tidl']['nodes'] > 100
    assert [report.pop('export', {}).get('equal') for report in ended] == [None, 1.0]
    assert ended == reports
    table = (tmp_path / 'zoo.md').read_text()
    assert table.count(row.format('100 %', '0 | 0 | 0')) == 1
    # Stopped and begun again, it goes on where it was.
    assert '1 models, 0 to examine' in sweep(
        tmp_path, CONFIGS[1], '--rules', '--json', str(tmp_path / 'zoo.json')
    )


def report_of(least16, least8, **changes):
    def result(least):
        return dict(heads={'head:0': 90.0, 'head:1': least}, missing=[], strayed=[])

    report = dict(
        config='folder/config.py',
        sqnr={'16': result(least16), '8': result(least8)},
        qat=dict(finite=True, lost_gradients=[], new_gradients=[]),
        reload=True,
        noise_gain=0.0,
        in_float={
            'embed.weight': dict(reason='no layer', kind='Embedding', trained=True)
        },
    )
    return {**report, **changes}


@pytest.mark.parametrize(
    'report, words',
    [
        (report_of(55.1, 15.1), []),
        (report_of(54.9, 15.1), ['below 55', 'head:1']),
        (report_of(60.0, 14.0), ['below 15', '46 dB less']),
        (report_of(40.0, 20.0, noise_gain=35.0), ['amplifies noise by 35 dB']),
        (report_of(60.0, 20.0, reload=False), ['reloading']),
        (
            report_of(
                60.0,
                20.0,
                in_float={'conv': dict(reason='other', kind='Conv2d', trained=True)},
            ),
            ['1 layers in float'],
        ),
        (
            report_of(
                60.0,
                20.0,
                qat=dict(finite=False, lost_gradients=['a'], new_gradients=[]),
            ),
            ['not finite', '1 lost gradients: `a`'],
        ),
    ],
)
def test_what_counts_as_a_shortfall(report, words):
    found = '; '.join(shortfalls(report))
    assert bool(found) == bool(words)
    assert all(word in found for word in words)


def test_export_column():
    assert _equal(None) == '–'
    assert _equal(dict(reason='why')) == 'no'
    assert _equal(dict(equal=1.0)) == '100 %'
    # Never rounded up to all.
    assert _equal(dict(equal=0.9999999)) == '99.999 %'
    compared = dict(
        equal=0.5, elements=8, largest=2.0, first='neck', integer_layers=3, layers=4
    )
    reports = [
        dict(config='a/a.py', export=dict(reason='no such operator')),
        dict(config='b/b.py', export={**compared, 'skipped': ['roi_head']}),
        dict(config='c/c.py'),
        dict(config='d/d.py', export={**compared, 'first': None}),
    ]
    text = '\n'.join(_exports(reports))
    assert '- `a/a.py`: no such operator' in text
    assert '50 % of 8 elements, the largest difference 2 steps' in text
    assert '- `d/d.py`: 50 % of 8 elements, all quantized tensors are equal' in text
    assert '- `b/b.py`: 1 of 4' in text
    assert '- `roi_head`: b' in text
    assert 'c/c' not in text


def test_commands_column():
    assert _predicted(None) == '–'
    assert _predicted(dict(reason='why')) == 'no'
    assert _predicted(dict(equal=1, images=2)) == '1 of 2'
    assert _predicted(dict(equal=2, images=2, missing=['roi_head'])) == '2 of 2*'
    reports = [
        dict(config='a/a.py', commands=dict(reason='no such operator')),
        dict(config='b/b.py', commands=dict(equal=1, images=2)),
        dict(config='c/c.py', commands=dict(equal=2, images=2)),
        dict(config='d/d.py'),
    ]
    text = '\n'.join(_exports(reports))
    assert '- `a/a.py`: no such operator' in text
    assert '- `b/b.py`: predictions differ' in text
    assert 'c/c' not in text and 'd/d' not in text
    in_short = _commands_in_short(reports)
    assert '3 of the 4 were run' in in_short
    assert '1 predict the same' in in_short
    assert _commands_in_short(reports[3:]) == ''


def rules_of(violation, kinds, **changes):
    found = dict(nodes=9, violation=violation, host=0, slower=0, kinds=kinds)
    return {**found, **changes}


def test_rules_columns():
    broken = rules_of(2, {'violation': {'Conv, weights: int8, zero point 0': 2}})
    elsewhere = rules_of(0, {'host': {'Softmax, limit: along the width': 3}}, host=3)
    right = rules_of(0, {})
    reports = [
        dict(config='a/a.py', rules=dict(tidl=broken, tensorrt=right, openvino=right)),
        dict(
            config='b/b.py',
            rules=dict(tidl=elsewhere, tensorrt=dict(reason='why'), openvino=right),
        ),
        dict(config='c/c.py', rules=dict(reason='out of memory')),
        dict(config='d/d.py'),
    ]
    assert [violations.cells(report) for report in reports] == [
        ['2', '0', '0'],
        ['0', 'no', '0'],
        ['no'] * 3,
        ['–'] * 3,
    ]
    named = violations.broken(reports)
    assert named['a/a.py'] == '`tidl`: Conv, weights: int8, zero point 0 (2 x)'
    assert named['b/b.py'] == '`tensorrt`: no file: why'
    assert named['c/c.py'] == 'out of memory'
    assert named['d/d.py'] == ''
    in_float = violations.in_float(reports)
    assert in_float == {'tidl`, `Softmax, limit: along the width': '3 nodes in 1 files'}
    assert 'counted for 3 of the 4' in violations.summary(reports)
    assert '`tidl`: 1 of 2 files break none, 0 of them' in violations.summary(reports)
    assert violations.summary(reports[3:]) == ''


def test_target_without_a_file_is_a_failure_to_retry(tmp_path):
    path = tmp_path / 'a__a.rules.json'
    rules = dict(tidl=rules_of(0, {}), openvino=dict(reason='why'))
    path.write_text(json.dumps(dict(engine='old', rules=rules)))
    assert is_done(path, 'old', None)
    assert not is_done(path, 'old', 'failed')


def test_results_of_earlier_versions_stand_if_asked(tmp_path):
    path = tmp_path / 'a__a.commands.json'
    assert not is_done(path, 'new', None, keep=True)
    path.write_text(json.dumps(dict(engine='old', commands=dict(equal=2, images=2))))
    assert not is_done(path, 'new', None)
    assert is_done(path, 'old', None)
    assert is_done(path, 'new', 'failed', keep=True)
    assert not is_done(path, 'new', 'everything', keep=True)
    path.write_text(json.dumps(dict(engine='old', commands=dict(reason='why'))))
    assert is_done(path, 'new', None, keep=True)
    assert not is_done(path, 'new', 'failed', keep=True)


def test_model_that_breaks_does_not_stop_the_sweep(tmp_path):
    out = sweep(tmp_path, CONFIGS[0], '--timeout', '0.1')
    assert 'took more than 0.1 s' in out
    assert '1 do not run quantized' in (tmp_path / 'zoo.md').read_text()

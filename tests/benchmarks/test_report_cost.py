"""The table of what reports cost, on a network that trains in a second."""

import json

import pytest
import report_cost
from toy_runner import make_config, train


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp('cost')
    train(make_config(root / 'float', None))
    path = root / 'toy.py'
    start = str(root / 'float' / 'epoch_6.pth')
    make_config(root / 'unused', load_from=start).dump(path)
    return path


def test_each_run_and_its_report_have_a_row(config, tmp_path, monkeypatch, capsys):
    found, table = tmp_path / 'out' / 'cost.json', tmp_path / 'table.md'
    line = [
        '--images',
        '16',
        '--repeats',
        '2',
        '--json',
        found,
        '--table',
        table,
        '--out',
        tmp_path,
    ]
    monkeypatch.setattr('sys.argv', ['report_cost.py', str(config), *map(str, line)])
    report_cost.main()
    calibration, test = json.loads(found.read_text())['toy']
    assert (calibration['kind'], test['kind']) == ('calibration', 'test')
    assert calibration['images'] == 16 and calibration['measured'] > 0
    for row in (calibration, test):
        assert row['shares'] == sorted(row['shares']) and len(row['shares']) == 2
        share = row['report_seconds'] / row['run_seconds']
        assert row['share'] == pytest.approx(share, rel=0.5)
    assert '| toy | calibration | 16 |' in table.read_text() in capsys.readouterr().out

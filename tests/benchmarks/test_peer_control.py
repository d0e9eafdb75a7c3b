"""NNCF's control as a benchmark, as far as it needs no NNCF."""

import json
import logging

import pytest

pytest.importorskip('mmdet')
import peer_control  # noqa: E402

ROW = dict(points=1.0, float=31.7, start=28.25, final=31.0, scorings=40)
ROW.update(reverted=5, minutes=3.2)


def test_what_is_put_back_is_read_from_the_log():
    reverted = peer_control.Reverted()
    logger = logging.Logger('toy')
    logger.addHandler(reverted)
    logger.info('Reverted 3 operations to the floating-point precision: \n\ta\n\tb')
    logger.info('Elapsed Time: 00:00:02')
    logger.info('5 out of 130 were reverted back to the floating-point precision:\n\ta')
    assert reverted.operations == 5 and len(reverted.lines) == 3


def test_the_table_has_a_row_for_each_network(tmp_path, monkeypatch, capsys):
    found = {'a': ROW, 'b': dict(ROW, start=None)}
    monkeypatch.setattr(peer_control, 'control', lambda path, args: found[path.stem])
    line = ['a.py', 'b.py', '--json', tmp_path / 'out' / 'control.json']
    monkeypatch.setattr('sys.argv', ['peer_control.py', *map(str, line)])
    peer_control.main()
    out = capsys.readouterr().out
    assert '| a | 31.7 | 28.2 | 31.0 | 5 | 40 | 3.2 |' in out
    assert '| b | 31.7 | – | 31.0 |' in out
    assert json.loads((tmp_path / 'out' / 'control.json').read_text()) == found

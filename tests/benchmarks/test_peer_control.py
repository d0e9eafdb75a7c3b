"""NNCF's control as a benchmark, as far as it needs no NNCF."""

import json
import logging

import pytest

pytest.importorskip('mmdet')
import peer_control  # noqa: E402

SAID = [
    'Accuracy drop: 0.0108 (absolute)',
    'Reverted 1 operations to the floating-point precision: \n\ta',
    'Accuracy drop with the new quantization scope is 0.0104 (absolute)',
    'Reverted 3 operations to the floating-point precision: \n\tb',
    'Algorithm completed: achieved required accuracy drop 0.0027 (absolute)',
    '4 out of 130 were reverted back to the floating-point precision:\n\ta\n\tb',
]
ROW = dict(points=1.0, float=31.7, scorings=40, minutes=3.2)


def test_what_nncf_says_of_it_is_kept():
    log, logger = peer_control.Log(), logging.Logger('toy')
    logger.addHandler(log)
    for line in ('Elapsed Time: 00:00:02', *SAID):
        logger.info(line)
    assert log.lines == SAID


@pytest.mark.parametrize(
    'lines, end, reverted',
    [(SAID, 31.43, 4), (SAID[:1], 30.62, 0), (SAID[:3], 30.66, 0)],
)
def test_the_outcome_is_in_its_words(lines, end, reverted):
    found = peer_control.outcome(dict(ROW, log=lines))
    assert found == (pytest.approx(30.62), pytest.approx(end), reverted)


def test_the_table_has_a_row_for_each_network(tmp_path, monkeypatch, capsys):
    found = {name: dict(ROW, log=SAID) for name in 'ab'}
    monkeypatch.setattr(peer_control, 'control', lambda path, args: found[path.stem])
    line = ['a.py', 'b.py', '--json', tmp_path / 'out' / 'control.json']
    monkeypatch.setattr('sys.argv', ['peer_control.py', *map(str, line)])
    peer_control.main()
    out = capsys.readouterr().out
    assert '| a | 31.7 | 30.6 | 31.4 | 4 | 40 | 3.2 |' in out and '| b |' in out
    assert json.loads((tmp_path / 'out' / 'control.json').read_text()) == found

"""The line of a page, followed as a user would, on a network of a second."""

import json

import report_advice
from toy_runner import make_config, train

from mmquant_jacinto.report.page import verdict


def test_the_line_of_the_page_is_calibrated_with(tmp_path, monkeypatch):
    train(make_config(tmp_path / 'float', None))
    path = tmp_path / 'toy.py'
    make_config(
        tmp_path / 'unused', load_from=str(tmp_path / 'float' / 'epoch_6.pth')
    ).dump(path)
    given = []
    original = report_advice.run

    def watched(cfg, folder, quantize):
        given.append((folder.name, quantize))
        return original(cfg, folder, quantize)

    monkeypatch.setattr(report_advice, 'run', watched)
    # The toy loses nothing.
    monkeypatch.setattr(verdict, 'GOOD_SNR', 1000.0)
    found, out = tmp_path / 'advice.json', tmp_path / 'out'
    line = [str(path), '--json', str(found), '--out', str(out)]
    monkeypatch.setattr('sys.argv', ['report_advice.py', *line])
    report_advice.main()
    row = json.loads(found.read_text())['toy']
    assert (out / 'toy' / 'page' / 'report.html').stat().st_size == row['page']['bytes']
    told = row['page']['next']
    assert told == row['page']['trials'][0]['line']
    assert row['page']['trials'][0]['after'] > row['page']['trials'][0]['before'] + 1
    assert [name for name, _ in given] == ['float', 'start', 'advised']
    assert given[0][1] is None and given[1][1] == dict(target='jacinto')
    assert given[2][1] == {'target': 'jacinto', **eval(f'dict({told})')}
    assert row['with the line']['seconds'] > 0
    assert row['page']['headline'] and row['page']['why']


def test_a_page_that_says_that_all_is_well_has_no_line(tmp_path):
    page = tmp_path / 'report.html'
    page.write_text('<p>There is nothing that has to be done.</p>')
    assert report_advice.read_line(page) == {}

"""AutoQuantize as a benchmark, as far as it needs no ModelOpt."""

import json

import pytest
import torch

pytest.importorskip('mmdet')
import peer_autoquantize  # noqa: E402
from peer_autoquantize import BISECTIONS, EFFECTIVE_BITS, Search  # noqa: E402


class Toy(Search):
    """A network of which so many effective bits keep so many points."""

    def __init__(self, needed):
        super().__init__(None, None, None, None)
        self.needed = needed

    def run(self, bits):
        kept = 40.0 if bits >= self.needed else 30.0
        trial = dict(bits=bits, in_float=['a'] * round(16 * (bits - 8)), score=kept)
        self.trials.append(trial)
        return trial


@pytest.mark.parametrize('needed', [8.0, 8.2, 8.7, 13.0])
def test_bits_are_raised_until_the_score_holds_and_then_lowered(needed):
    search = Toy(needed)
    found = search.within(39.0)
    assert found['score'] == 40.0 and found['bits'] >= needed
    assert len(search.trials) <= len(EFFECTIVE_BITS) + BISECTIONS
    if needed == 8.0:
        assert len(search.trials) == 1 and not found['in_float']
    else:
        # Three bisections leave an eighth of the last step.
        assert found['bits'] - needed <= (found['bits'] - 8) / 8


def test_a_score_that_is_never_kept_gives_nothing():
    assert Toy(17.0).within(39.0) is None


def test_the_loss_is_a_projection_with_a_gradient_for_each_output():
    outputs = [torch.randn(1, 2, 3, requires_grad=True) for _ in range(2)]
    loss = peer_autoquantize.projection(tuple(outputs), torch.zeros(1))
    first = torch.autograd.grad(loss, outputs)
    assert all((gradient.abs() > 0).all() for gradient in first)
    again = peer_autoquantize.projection(tuple(outputs), torch.zeros(1))
    assert torch.equal(loss, again)


def test_the_table_has_a_row_for_each_network_and_its_reason(
    tmp_path, monkeypatch, capsys
):
    best = dict(bits=9.0, in_float=['a', 'b'], score=36.6)
    trials = [dict(bits=8.0, in_float=[], score=0.0), best]
    times = dict(minutes=4.0, processor_minutes=0.7)
    found = dict(
        a=dict(float=37.1, trials=trials, best=best, **times),
        b=dict(float=37.1, trials=trials[:1], best=None, **times),
        c=dict(float=37.1, trials=[], reason='ValueError: no such layer'),
    )
    monkeypatch.setattr(
        peer_autoquantize, 'search', lambda path, args: found[path.stem]
    )
    target = tmp_path / 'out' / 'found.json'
    line = ['a.py', 'b.py', 'c.py', '--json', target]
    monkeypatch.setattr('sys.argv', ['peer_autoquantize.py', *map(str, line)])
    peer_autoquantize.main()
    out = capsys.readouterr().out
    assert '| a | 37.1 | 0.0 | 36.6 | 2 | 2 | 4.0 | 0.7 |' in out
    assert '0.0 (not met)' in out and 'ValueError: no such layer' in out
    assert json.loads(target.read_text()) == found

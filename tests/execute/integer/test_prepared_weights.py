"""Integer weights are made once, and anew when what they are made of has changed."""

import torch
from outputs import run
from toy_models import calibrated

from mmquant_jacinto.execute.integer import layers


def test_weights_are_prepared_once_until_training_goes_on(toy_net, images, monkeypatch):
    calls = []

    def counted(*args, original=layers.to_integers):
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(layers, 'to_integers', counted)
    quantization = calibrated(toy_net, images)
    (first,) = run(toy_net, images)
    assert len(calls) == len(quantization.plan.weights)
    (again,) = run(toy_net, images)
    assert len(calls) == len(quantization.plan.weights)
    assert torch.equal(first, again)
    quantization.set_phase('train')
    with torch.no_grad():
        toy_net.fc.bias.add_(0.5)
    quantization.set_phase('test')
    (changed,) = run(toy_net, images)
    assert not torch.equal(changed, first)


def test_loaded_float_weights_are_used_at_once(toy_net, images):
    calibrated(toy_net, images)
    (before,) = run(toy_net, images)
    state = {
        name: value.clone()
        for name, value in toy_net.state_dict().items()
        if not name.startswith('quantization.')
    }
    state['fc.bias'] += 0.5
    toy_net.load_state_dict(state)
    assert not torch.equal(run(toy_net, images)[0], before)

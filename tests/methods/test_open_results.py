"""Calibration's methods on layers whose results have no grid of their own."""

import pytest
import torch
import torch.nn.functional as F
from smooth_functions import smooth_net
from toy_models import make_plan

from mmquant_jacinto import QuantCalibrateModule, QuantTestModule
from mmquant_jacinto.methods.reconstruction import generations
from mmquant_jacinto.targets.openvino import OpenVino
from mmquant_jacinto.targets.rules.table import Fusion, Pattern, Rules


def swish(x):
    return x * torch.sigmoid(x)


def images(count=6):
    torch.manual_seed(1)
    return [torch.randn(4, 3, 16, 16) for _ in range(count)]


def calibrate(net, batches, target='openvino', **quantize):
    model = QuantCalibrateModule(net, batches[0], target=target, **quantize).train()
    if model.plan.undecided:
        model.search_bits(batches)
    for _ in range(4):
        for batch in batches:
            model(batch)
    return model


def noise(model, net, batches):
    """Of the integer model, against the float one."""
    model.eval()
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in batches])
        found = torch.cat([model(batch) for batch in batches])
    model.train()
    return ((found - expected).square().sum() / expected.square().sum()).item()


def test_generations_follow_open_results():
    plan = make_plan(smooth_net(swish), images()[0], target='openvino')
    assert generations(plan) == [['stem'], ['depth'], ['last']]
    net = smooth_net(F.silu)
    net.add_module('side', torch.nn.Conv2d(8, 8, 1))
    net.function = lambda net, x: (
        net.last(swish(net.depth(y := swish(net.stem(x))))),
        net.side(y),
    )
    plan = make_plan(net, images()[0], target='openvino')
    assert generations(plan) == [['stem'], ['depth', 'side'], ['last']]


@pytest.mark.parametrize('target', ['openvino', 'tensorrt'])
def test_biases_are_corrected(target):
    batches, net = images(), smooth_net(swish)
    bits, off = dict(weight=3, activation=8), dict(bias_correction=False)
    raw = calibrate(smooth_net(swish), batches, target, bits=bits, calibration=off)
    model = calibrate(smooth_net(swish), batches, target, bits=bits)
    assert noise(model, net, batches) < 0.9 * noise(raw, net, batches)


@pytest.mark.parametrize(
    'options, method',
    [
        (dict(finetune=dict(iterations=60, lr=0.05)), 'finetune'),
        (dict(rounding='coordinate_descent'), 'round_weights'),
    ],
)
def test_weights_are_chosen_for_what_is_behind(options, method):
    batches, net = images(), smooth_net(swish)
    few = dict(bits=dict(weight=3, activation=8), edge_bits=3)
    model = calibrate(smooth_net(swish), batches, **few, **options)
    before = noise(model, net, batches)
    getattr(model, method)(batches)
    assert noise(model, net, batches) < 0.8 * before


def test_widths_are_chosen():
    batches = images()
    model = calibrate(
        smooth_net(swish),
        batches,
        bits=dict(weight=8, activation=8),
        mixed_precision=dict(average_bits=6.0, num_images=4),
    )
    plan = model.quantization.plan
    assert not plan.undecided
    assert {spec.format.bits for spec in plan.weights.values()} == {4, 8}
    assert plan.steps['stem/conv2d'].joins == '/mul'


def test_plan_of_an_older_checkpoint_keeps_its_grids(monkeypatch):
    batches, net = images(), smooth_net(swish)
    rows = [r for r in OpenVino.rules.rows if not isinstance(r, (Fusion, Pattern))]
    with monkeypatch.context() as older:
        older.setattr(OpenVino, 'rules', Rules(tuple(rows)))
        model = calibrate(net, batches)
        expected = model.eval()(batches[0])
    names = [spec.name for spec in model.quantization.plan.activations]
    assert names[1:4] == ['stem/conv2d', '/sigmoid', '/mul']

    again = QuantTestModule(smooth_net(swish, seed=1), batches[0], target='openvino')
    assert '/sigmoid' not in again.quantization.activations.index
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(batches[0]), expected)
    assert [spec.name for spec in again.quantization.plan.activations] == names

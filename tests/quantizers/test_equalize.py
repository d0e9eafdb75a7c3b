"""Cross-layer equalization, and the twin that needs it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import (
    INVERTED,
    Forward,
    calibrated,
    inverted,
    make_plan,
    randomize_norms,
)

from mmquant_jacinto import QuantCalibrateModule, QuantizeError, QuantTrainModule
from mmquant_jacinto.quantizers.equalize import equalize, hostile_twin
from mmquant_jacinto.quantizers.layers import Layer

# One scale for each tensor, as fine as it may be: the hard case.
PER_TENSOR = dict(target='tensorrt', bits=8, observer='minmax')


@pytest.fixture
def x():
    return torch.randn(4, 3, 12, 12)


def plain():
    """Two layers with biases and a ReLU between them."""
    return Forward(
        lambda net, x: net.second(F.relu(net.first(x))),
        first=nn.Conv2d(3, 16, 3),
        second=nn.Conv2d(16, 8, 3),
    ).eval()


def transposed():
    """Grouped and transposed convolutions, and a classifier."""
    return randomize_norms(
        Forward(
            lambda net, x: net.fc(
                F.adaptive_avg_pool2d(
                    F.leaky_relu(net.norm(net.up(F.relu(net.grouped(net.stem(x)))))), 1
                ).flatten(1)
            ),
            stem=nn.Conv2d(3, 8, 3),
            grouped=nn.Conv2d(8, 12, 3, groups=2),
            up=nn.ConvTranspose2d(12, 6, 2, groups=3),
            norm=nn.BatchNorm2d(6),
            fc=nn.Linear(6, 5),
        )
    ).eval()


MODELS = dict(plain=plain, inverted=inverted, transposed=transposed)


def layers_of(net, plan):
    return {name: Layer.find(net, spec) for name, spec in plan.weights.items()}


def snr(expected, found):
    """Signal to noise, in dB."""
    noise = (found - expected).square().mean()
    return 10 * torch.log10(expected.square().mean() / noise).item()


@pytest.mark.parametrize('name', MODELS)
def test_float_function_stays(name, x):
    net = MODELS[name]()
    plan = make_plan(net, x, equalize=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    expected = net(x)
    equalize(plan, layers_of(net, plan))
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) >= 2
    assert not any('running' in key for key in changed)


@pytest.mark.parametrize('name', MODELS)
def test_twin_computes_the_same_to_the_last_bit(name, x):
    # Powers of two are exact, where the order of the sums stays the same.
    net = MODELS[name]()
    before = copy.deepcopy(net.state_dict())
    twin = hostile_twin(net, make_plan(net, x, equalize=True))
    torch.testing.assert_close(twin(x), net(x), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    weights = zip(net.parameters(), twin.parameters())
    ratios = torch.cat([(b / a)[a != 0].flatten() for a, b in weights])
    assert ratios.max() >= 2**3 and ratios.min() <= 2**-3


def test_twin_with_live_statistics_computes_the_same(x):
    net = inverted()
    twin = hostile_twin(net, make_plan(net, x, equalize=True)).train()
    torch.testing.assert_close(twin(x), net.train()(x), rtol=1e-4, atol=1e-4)


def test_ranges_of_two_layers_become_the_formula(x):
    # s = sqrt(r1 / r2): of each channel, the same share on both sides.
    net = plain()
    nn.init.zeros_(net.first.bias)
    with torch.no_grad():
        net.first.weight.mul_(torch.logspace(-2, 2, 16, base=2).view(-1, 1, 1, 1))
    r1 = net.first.weight.detach().abs().amax((1, 2, 3))
    r2 = net.second.weight.detach().abs().amax((0, 2, 3))
    scale = (r1 / r2).sqrt()
    scale = scale / scale.log().mean().exp()
    plan = make_plan(net, x, equalize=True)
    equalize(plan, layers_of(net, plan))
    reach = net.first.weight.detach().abs().amax((1, 2, 3))
    torch.testing.assert_close(reach, r1 / scale, rtol=1e-4, atol=0)
    reach = net.second.weight.detach().abs().amax((0, 2, 3))
    torch.testing.assert_close(reach, r2 * scale, rtol=1e-4, atol=0)


def test_channel_that_is_all_offset_keeps_its_range(x):
    # Its weights are nothing beside the others', its offset is everything.
    net = plain()
    with torch.no_grad():
        net.first.weight[0] *= 1e-6
        net.first.bias[0] = 1.0
    plan = make_plan(net, x, equalize=True)
    equalize(plan, layers_of(net, plan))
    assert net.first.bias.abs().max() < 10


def test_dead_channels_stay_as_they_are(x):
    net = plain()
    with torch.no_grad():
        net.first.weight[0], net.first.bias[0] = 0.0, 0.0
        net.second.weight[:, 1] = 0.0
    expected = net(x)
    plan = make_plan(net, x, equalize=True)
    equalize(plan, layers_of(net, plan))
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('name', MODELS)
def test_twin_collapses_and_equalization_brings_it_back(name, x):
    net = MODELS[name]()
    twin = hostile_twin(net, make_plan(net, x, equalize=True))
    expected = net(x)

    def quality(model, **quantize):
        model = copy.deepcopy(model)
        calibrated(model, x, **PER_TENSOR, **quantize)
        return snr(expected, model(x))

    original, hostile = quality(net), quality(twin)
    assert original > 24
    assert hostile < original - 6
    assert quality(twin, equalize=True) > original - 3


def test_model_of_many_channels_collapses_for_good(x):
    torch.manual_seed(1)
    net = inverted(width=INVERTED * 4)
    twin = hostile_twin(net, make_plan(net, x, equalize=True))
    expected = net(x)
    found = {}
    for equalizes in (False, True):
        model = copy.deepcopy(twin)
        calibrated(model, x, **PER_TENSOR, equalize=equalizes)
        found[equalizes] = snr(expected, model(x))
    assert found[False] < 20 < found[True] - 8


@pytest.mark.parametrize('wrapper', [QuantTrainModule, QuantCalibrateModule])
def test_equalized_once_and_never_again(wrapper, x):
    net = inverted()
    model = wrapper(net, x, equalize=True)
    assert not model.quantization.equalized
    model.train()
    model(x)
    assert model.quantization.equalized
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    model.eval().train()
    model(x)
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())


def test_checkpoint_loads_into_float_model_and_is_not_equalized_again(x):
    net = inverted()
    fresh, again = copy.deepcopy(net), copy.deepcopy(net)
    expected = net(x)
    calib = QuantCalibrateModule(net, x, equalize=True).train()
    calib(x)
    state = net.state_dict()
    left = fresh.load_state_dict(state, strict=False)
    assert not left.missing_keys
    assert all(key.startswith('quantization.') for key in left.unexpected_keys)
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-4)
    other = QuantTrainModule(again)
    again.load_state_dict(state)
    before = [p.detach().clone() for p in again.parameters()]
    other.train()(x)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), before))


def test_plan_with_pairs_survives_json(x):
    plan = make_plan(inverted(), x, equalize=True)
    assert plan.pairs
    assert type(plan).from_json(plan.to_json()) == plan


def test_model_without_a_pair_is_refused(x):
    net = Forward(
        lambda net, x: net.b(F.relu6(net.a(x))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 4, 1),
    )
    with pytest.raises(QuantizeError, match='quantize.equalize=True') as caught:
        make_plan(net, x, equalize=True)
    assert 'ReLU6' in str(caught.value)
    assert not make_plan(net, x).pairs
    with pytest.raises(QuantizeError, match='equalize=True'):
        hostile_twin(net, make_plan(net, x))


def test_training_starts_from_the_float_function(x):
    # The first batch has no ranges: only weights are on a grid, a fine one.
    net = inverted()
    expected = copy.deepcopy(net).train()(x)
    train = QuantTrainModule(net, x, equalize=True, bits=16).train()
    torch.testing.assert_close(train(x), expected, rtol=1e-2, atol=1e-2)

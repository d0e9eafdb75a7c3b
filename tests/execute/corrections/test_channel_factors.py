"""Channels of unlike reach: their factors, and what they are worth."""

import copy

import pytest
import torch
import torch.nn.functional as F
from outputs import snr
from smooth_functions import uneven
from torch import nn
from toy_models import Forward

from mmquant_jacinto import (
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
)
from mmquant_jacinto.execute.corrections.channel_factors import (
    FINE_HEADROOM,
    HEADROOM,
    MAX_FACTOR,
    candidate_factors,
)
from mmquant_jacinto.execute.corrections.channel_noise import (
    ChannelUse,
    Maker,
    Reader,
)
from mmquant_jacinto.quantizers.activation_grids import power_of_two_above
from mmquant_jacinto.targets.formats import TensorFormat

ACTIVATIONS = {
    'none': lambda x: x,
    'relu': F.relu,
    'relu6': F.relu6,
    'silu': F.silu,
    'swish': lambda x: x * x.sigmoid(),
    'hardswish': F.hardswish,
}
# Of these only engines that divide what they quantize have factors.
DIVIDED = {
    'gelu': F.gelu,
    'sum': lambda x: F.relu(x) + 0.5 * x.abs(),
}
TARGETS = ('onnxruntime', 'jacinto', 'tidl', 'openvino', 'tensorrt')


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(4, 3, 16, 16)


def calibrate(net, x, **quantize):
    calib = QuantCalibrateModule(copy.deepcopy(net), x, **quantize).train()
    calib(x)
    return calib.eval()


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_factors_give_small_channels_steps(name, target, x):
    net = uneven(ACTIVATIONS[name])
    reference = net(x)
    scaled, plain = (
        calibrate(net, x, target=target, scale_channels=given)(x)
        for given in (None, False)
    )
    # A clamp bounds how much there is to gain, and so does a grid without an offset.
    gain = 3 if name == 'relu6' else 6
    assert snr(reference, scaled) > snr(reference, plain) + gain


@pytest.mark.parametrize('target', ['openvino', 'tensorrt'])
@pytest.mark.parametrize('name', DIVIDED)
def test_what_is_divided_as_it_is_quantized(name, target, x):
    net = uneven(DIVIDED[name])
    reference = net(x)
    scaled, plain = (
        calibrate(net, x, target=target, scale_channels=given)(x)
        for given in (None, False)
    )
    # In front of the sum there is a grid without factors.
    gain = 1 if name == 'sum' else 3
    assert snr(reference, scaled) > snr(reference, plain) + gain


def test_float_function_and_weights_stay(x):
    net = uneven(F.silu)
    calib = calibrate(net, x, target='onnxruntime')
    for name, value in net.state_dict().items():
        assert torch.equal(calib.module.state_dict()[name], value)
    calib.quantization.set_phase('float')
    assert torch.equal(calib.module(x), net(x))


@pytest.mark.parametrize('target', ['onnxruntime', 'openvino', 'tidl'])
@pytest.mark.parametrize('norm', [True, False])
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_simulation_is_what_integers_compute(name, norm, target, x):
    calib = calibrate(uneven(ACTIVATIONS[name], norm), x, target=target)
    with torch.no_grad():
        integers = calib(x)
        calib.quantization.set_phase('train')
        calib.quantization.activations.observing = False
        simulated = calib.module.eval()(x)
    assert snr(integers, simulated) > 30


def test_state_comes_back_from_a_checkpoint(x):
    calib = calibrate(uneven(F.silu), x, target='onnxruntime')
    assert (calib.quantization.channel_factor != 1).any()
    test = QuantTestModule(uneven(F.silu)).eval()
    test.module.load_state_dict(calib.module.state_dict())
    assert torch.equal(test(x), calib(x))


@pytest.mark.parametrize('is_live', [False, True])
def test_training_goes_on_with_the_factors(is_live, x):
    nets = [with_statistics_of(x) for _ in range(3)]
    calib = calibrate(nets[0], x, target='onnxruntime')
    train = QuantTrainModule(nets[1], x, target='onnxruntime', total_epochs=2)
    train.module.load_state_dict(calib.module.state_dict())
    factor = train.quantization.channel_factor
    assert torch.equal(factor, calib.quantization.channel_factor)
    train.train()
    for net in nets[1:]:
        net.norm.train(is_live), net.norm2.train(is_live)
    train(x).square().mean().backward()
    nets[2](x).square().mean().backward()
    expected = dict(nets[2].named_parameters())
    for name, parameter in nets[1].named_parameters():
        grad = expected[name].grad
        if is_live and name in ('first.bias', 'depth.bias'):
            # The batch's mean takes them off again.
            continue
        alike = F.cosine_similarity(parameter.grad.flatten(), grad.flatten(), 0)
        assert alike > 0.95, name
        assert parameter.grad.norm() == pytest.approx(grad.norm().item(), rel=0.5)


def with_statistics_of(x):
    """The net, its running statistics those of a batch."""
    net = uneven(F.silu)
    for _ in range(2):
        for norm in (net.norm, net.norm2):
            norm.momentum = 1.0
            norm.train()
        with torch.no_grad():
            net(x)
    return net.eval()


def test_finetuning_learns_on_scaled_channels(x):
    net = uneven(F.silu)
    options = dict(target='onnxruntime', finetune=dict(iterations=40))
    calib = QuantCalibrateModule(copy.deepcopy(net), x, **options).train()
    calib(x)
    history = calib.finetune([x])
    assert sum(history[-5:]) < sum(history[:5])


def test_training_starts_from_scaled_channels(x):
    float_net = uneven(F.silu)
    found = {}
    for scales in (False, True):
        qat = QuantTrainModule(
            copy.deepcopy(float_net),
            x,
            target='onnxruntime',
            observer='minmax',
            scale_channels=scales,
        ).train()
        qat.measure_start([x])
        assert qat.training and qat.quantization.has_ranges
        assert (qat.quantization.channel_factor is not None) == scales
        with torch.no_grad():
            found[scales] = snr(float_net(x), qat.eval()(x))
    assert found[True] > found[False] + 3
    # Of what was measured nothing is measured anew as the training starts.
    low = qat.quantization.activations.low.clone()
    qat.train()(x)
    assert qat.quantization.activations.low.le(low).all()


def test_widths_are_chosen_on_scaled_channels(x):
    net = uneven(F.relu)
    budget = dict(average_bits=6.0, num_images=2)
    calib = QuantCalibrateModule(
        copy.deepcopy(net), x, target='onnxruntime', mixed_precision=budget
    ).train()
    table = calib.search_bits([x[:2], x[2:]])
    factor = calib.quantization.channel_factor.clone()
    assert (factor != 1).any()
    # Ranges and widths are of these.
    calib(10 * x)
    assert torch.equal(calib.quantization.channel_factor, factor)
    assert table.to_json()


def test_ranges_that_are_there_keep_their_channels(x):
    calib = QuantCalibrateModule(uneven(F.silu), x, target='onnxruntime').train()
    calib.observe(x)
    calib(x)
    assert (calib.quantization.channel_factor == 1).all()


def layers_of(weight, x, **quantize):
    """Two layers around four channels, the second with these weights: (O, 4)."""
    net = Forward(
        lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 1, 1)
    )
    net.b = nn.Conv2d(4, len(weight), 1)
    with torch.no_grad():
        net.b.weight.copy_(weight.view(-1, 4, 1, 1))
    calib = QuantCalibrateModule(net, x, target='onnxruntime', **quantize)
    return calib.quantization.layers


def use_of(high, readers, low=None, maker=None, **options):
    high = torch.tensor(high)
    low = torch.zeros_like(high) if low is None else torch.tensor(low)
    power = high.square() / 12
    fmt = TensorFormat(**{**dict(unsigned_if_positive=True), **options})
    return ChannelUse(low, high, power, power, fmt, readers, maker)


def test_reach_and_weights_share_the_unevenness(x):
    readers = [Reader(layers_of(torch.ones(1, 4), x)['b'])]
    found = candidate_factors(use_of([16.0, 4.0, 1.0, 1.0], readers), False)
    assert torch.allclose(found[0], torch.tensor([1.0, 0.25, 0.0625, 0.0625]))
    assert torch.allclose(found[-1], torch.tensor([1.0, 0.5, 0.25, 0.25]))
    readers = [Reader(layers_of(torch.tensor([[1.0, 4.0, 16.0, 16.0]]), x)['b'])]
    found = candidate_factors(use_of([1.0, 1.0, 1.0, 1.0], readers), False)
    assert torch.allclose(found[-1], torch.tensor([1.0, 0.5, 0.25, 0.25]))


def test_a_clamp_keeps_what_it_held_with_room(x):
    reach = torch.tensor([6.0, 6.0, 3.0, 0.1])
    readers = [Reader(layers_of(torch.tensor([[0.1, 1.0, 1.0, 1.0]]), x)['b'])]
    for found in candidate_factors(use_of(reach.tolist(), readers), True):
        assert (found[:2] == 1).all() and (found <= 1).all()
        assert (reach[2:] / found[2:] <= 6 / HEADROOM * 1.0001).all()


def test_fine_grids_leave_room_in_each_channel(x):
    readers = [Reader(layers_of(torch.ones(1, 4), x)['b'])]
    reach = [16.0, 4.0, 1.0, 0.001]
    for found in candidate_factors(use_of(reach, readers, bits=16), False):
        room = 16.0 / (torch.tensor(reach) / found)
        assert (room[1:] >= FINE_HEADROOM).logical_or(found[1:] == 1).all()
    tight = candidate_factors(use_of(reach, readers), False)[0]
    assert torch.allclose(torch.tensor(reach)[:3] / tight[:3], torch.tensor(16.0))


@pytest.mark.parametrize('reach', [[0.0, 0, 0, 0], [1, 0, 0, 0], [1e18, 1, 1e-18, 0]])
@pytest.mark.parametrize('symmetric', [True, False])
def test_dead_channels_have_finite_factors(symmetric, reach, x):
    readers = [Reader(layers_of(torch.ones(2, 4), x)['b'])]
    use = use_of(reach, readers, symmetric=symmetric)
    for found in candidate_factors(use, False):
        assert found.isfinite().all()
        assert (found >= 1 / MAX_FACTOR).all() and (found <= 1).all()
        assert use.noise(found).isfinite()


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('size', [0.0, 1e-30, 1e30])
def test_tensors_without_a_size_are_left_finite(size, target, x):
    net = uneven(F.relu, norm=False)
    with torch.no_grad():
        net.first.weight.mul_(size)
        net.first.bias.mul_(size)
    calib = calibrate(net, x, target=target)
    assert calib.quantization.channel_factor.isfinite().all()


def measured_noise(values, factor, weight, use, bits):
    """Of a product of rounded channels and rounded weights, against its spread."""
    step = use.step(factor)
    rounded = ((values / factor) / step).round() * step * factor
    rows = weight * factor
    unit = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    integers = (rows / unit).round() * unit / factor
    expected = values @ weight.T
    noise = (rounded @ integers.T - expected).square().mean(0)
    return (noise / expected.square().mean(0)).mean()


def test_modelled_noise_is_what_rounding_makes(x):
    torch.manual_seed(0)
    high = torch.tensor([8.0, 4.0, 1.0, 0.25])
    values = (torch.rand(20000, 4) * 2 - 1) * high
    weight = torch.randn(64, 4) / high
    reader = Reader(layers_of(weight, x)['b'])
    power = values.square().mean(0)
    # Of numbers without outliers the spread says what the power does.
    use = ChannelUse(high, high, power, power, TensorFormat(symmetric=False), [reader])
    for factor in candidate_factors(use, False):
        found = measured_noise(values, factor.detach(), weight, use, 8)
        assert use.noise(factor).item() == pytest.approx(found.item(), rel=0.35)


def test_outliers_do_not_hide_the_noise_of_a_grid(x):
    reader = Reader(layers_of(torch.eye(4), x)['b'])
    reach, power = torch.full((4,), 100.0), torch.full((4,), 25.0)
    noises = [
        ChannelUse(reach, reach, power, spread, TensorFormat(), [reader]).noise(
            torch.ones(4)
        )
        for spread in (power, 0.01 * power)
    ]
    assert noises[1] > 20 * noises[0]


def test_a_layer_with_one_scale_pays_for_rows_that_grow(x):
    layers = layers_of(torch.ones(1, 4), x, per_channel=False)
    with torch.no_grad():
        layers['a'].weight.copy_(torch.tensor([4.0, 2, 1, 1]).view(4, 1, 1, 1))
    maker = Maker(layers['a'], torch.tensor(1.0))
    even, uneven = torch.tensor([1.0, 0.5, 0.25, 0.25]), torch.tensor([1.0, 1, 1, 0.01])
    assert maker.noise(even) == maker.noise(torch.ones(4))
    assert maker.noise(uneven) > 100 * maker.noise(even)


def test_ranges_end_where_a_grid_of_a_power_of_two_does(x):
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.b(net.a(x)), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1)
    )
    with torch.no_grad():
        net.a.bias.zero_()
        reach = net.a(x).abs().max()
        # Just above one: half of its grid would stay empty.
        net.a.weight.mul_(1.1 * power_of_two_above(reach) / reach / 2)
        reach = net.a(x).abs().max()
    calib = calibrate(net, x, target='jacinto')
    factor = calib.quantization.channel_factor
    found = (net.a(x).abs().amax((0, 2, 3)) / factor).max()
    assert 0.95 * power_of_two_above(found) < found <= power_of_two_above(found)


def test_even_channels_are_left_alone(x):
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.b(F.silu(net.a(x))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
    ).eval()
    with torch.no_grad():
        net.a.weight.copy_(net.a.weight[:1].expand_as(net.a.weight))
        net.a.bias.zero_()
    calib = calibrate(net, x, target='onnxruntime')
    assert (calib.quantization.channel_factor == 1).all()
    assert not calib.quantization.activations.factors


def test_images_that_are_not_finite_say_nothing(x):
    net = uneven(F.relu)
    expected = calibrate(net, x, target='onnxruntime').quantization.channel_factor
    calib = QuantCalibrateModule(copy.deepcopy(net), x, target='onnxruntime').train()
    broken = torch.full_like(x, torch.nan)
    calib.measure_channels([lambda: calib.module(x), lambda: calib.module(broken)])
    assert torch.equal(calib.quantization.channel_factor, expected)

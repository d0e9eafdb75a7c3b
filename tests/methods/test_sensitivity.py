"""Sensitivities from their formula, and what is measured."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bit_search import calibrate_module
from torch import nn
from toy_models import Forward, ToyDetector, ToyNet, randomize_norms, seeded
from toy_runner import differences

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.methods.mixed_precision import BitSearch


def rounded(weight, bits):
    """A weight on the grid of `onnxruntime`: per channel, narrow, half to even."""
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / high
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / scale), -high, high) * scale


def numpy_of(parameter):
    return parameter.detach().double().numpy()


def test_on_average_it_is_the_noise_to_signal_of_the_outputs():
    # Exactly so of a linear function; of two outputs, the ratios add up.
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: (net.fc(x)[:, :3], 50 * net.other(x)),
        fc=nn.Linear(6, 5, bias=False),
        other=nn.Linear(6, 2, bias=False),
    )
    x = torch.randn(1, 6)
    module = calibrate_module(net, x, dict(average_bits=5.0))
    module.observe(x)
    search = BitSearch(module.quantization, module.config.mixed_precision)
    for seed in range(600):
        search.probe(lambda: net(x), seed)
    noise = search.sensitivity.result()
    for name in ('fc', 'other'):
        weight, image = numpy_of(net.get_submodule(name).weight), numpy_of(x)[0]
        for bits, value in zip((4, 8), noise[name]):
            change = (rounded(weight, bits) - weight) @ image
            expected = np.square(change).sum() / np.square(weight @ image).sum()
            # A sample has a relative deviation of at most sqrt(2).
            assert value == pytest.approx(expected, rel=4 * (2 / 600) ** 0.5)


def test_a_sample_is_the_projection_of_what_rounding_does():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.fc(F.relu(net.norm(net.conv(x))).flatten(1)),
        conv=nn.Conv2d(2, 4, 3, bias=False),
        norm=nn.BatchNorm2d(4),
        fc=nn.Linear(16, 3),
    )
    x = torch.randn(1, 2, 4, 4)
    module = calibrate_module(randomize_norms(net), x, dict(average_bits=5.0))
    module.observe(x)
    search = BitSearch(module.quantization, module.config.mixed_precision)
    search.probe(lambda: net(x), 7)
    noise = search.sensitivity.result()

    generator = seeded(7)
    direction = torch.empty(1, 3).normal_(generator=generator).double()
    net.quantization.detach()
    del net.quantization
    reference = net.double()
    y = reference(x.double())
    weights = [reference.conv.weight, reference.fc.weight]
    gradients = torch.autograd.grad((direction * y).sum() / y.detach().norm(), weights)
    norm = reference.norm
    factor = numpy_of(norm.weight) / np.sqrt(numpy_of(norm.running_var) + norm.eps)
    for name, weight, gradient, scale in zip(
        ('conv', 'fc'), weights, gradients, (factor[:, None, None, None], 1.0)
    ):
        # The grid is that of the folded weight.
        weight = numpy_of(weight)
        for bits, value in zip((4, 8), noise[name]):
            change = rounded(weight * scale, bits) / scale - weight
            expected = (gradient.numpy() * change).sum() ** 2
            assert value == pytest.approx(expected, rel=1e-3)


def test_the_layer_that_matters_gets_the_bits():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.weak(x) + net.strong(x),
        weak=nn.Conv2d(3, 8, 3),
        strong=nn.Conv2d(3, 8, 3),
    )
    nn.init.normal_(net.strong.weight, std=10.0)
    images = [torch.randn(1, 3, 8, 8) for _ in range(4)]
    module = calibrate_module(net, images[0], dict(average_bits=6.0))
    table = module.search_bits(images)
    assert {name: layer.bits for name, layer in table.layers.items()} == {
        'weak': 4,
        'strong': 8,
    }
    assert table.average_bits == 6.0
    assert table.layers['strong'].noise[4] > 50 * table.layers['weak'].noise[4]


@pytest.mark.parametrize('frozen', [False, True])
def test_shared_heads_and_frozen_layers_are_measured(frozen):
    torch.manual_seed(0)
    net = ToyDetector()
    image = torch.randn(1, 3, 8, 8)
    net.requires_grad_(not frozen)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    noise = {
        name: layer.noise
        for name, layer in module.search_bits([image] * 2).layers.items()
    }
    assert set(noise) == {'backbone.conv', 'head.tower', 'head.cls'}
    assert all(values[4] > values[8] > 0 for values in noise.values())
    assert all(p.grad is None for p in net.parameters())


def test_a_head_that_ends_in_a_float_call_is_measured_before_it():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: torch.special.erf(net.two(F.relu(net.one(x)))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    image = torch.randn(1, 3, 8, 8)
    table = calibrate_module(net, image, dict(average_bits=6.0)).search_bits([image])
    assert all(layer.noise[4] > 0 for layer in table.layers.values())


def test_a_search_leaves_random_numbers_and_weights_alone():
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    before = {name: p.clone() for name, p in net.named_parameters()}
    torch.manual_seed(1)
    module.search_bits([image] * 2)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert not differences(before, dict(net.named_parameters()))


def test_an_image_that_gives_nan_counts_for_nothing():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 16, 16)
    broken = torch.full_like(image, torch.nan)
    results = []
    for images in ([image], [image, broken]):
        torch.manual_seed(0)
        net = randomize_norms(ToyNet())
        module = calibrate_module(net, image, dict(average_bits=6.0))
        results.append(module.search_bits(images).layers)
    assert results[0] == results[1]


def test_images_that_all_give_nan_are_an_error():
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    with pytest.raises(QuantizeError, match='mixed_precision measured nothing'):
        module.search_bits([torch.full_like(image, torch.nan)])


@pytest.mark.parametrize('kind', ['last', 'one of two', 'in the middle'])
def test_layers_in_front_of_a_float_one_are_measured(kind):
    torch.manual_seed(0)
    convs = {name: nn.Conv2d(3, 3, 3) for name in ('first', 'second', 'third')}

    def forward(net, x):
        x = net.first(x).relu()
        if kind == 'one of two':
            return net.second(x).relu(), net.third(x)
        return net.third(net.second(x).relu())

    off = 'second' if kind == 'in the middle' else 'third'
    measured = {'first', 'second', 'third'} - {off}
    image = torch.randn(1, 3, 12, 12)
    module = calibrate_module(
        Forward(forward, **convs),
        image,
        dict(average_bits=6.0),
        overrides={off: False},
    )
    layers = module.search_bits([image]).layers
    assert set(layers) == measured
    assert all(min(layer.noise.values()) > 0 for layer in layers.values())

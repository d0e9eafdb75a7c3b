"""The integer model against its formulas in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from outputs import run, snr
from reference import ROUND, convolve, power_of_two, to_grid
from torch import nn
from toy_models import Forward, calibrated, randomize_norms

TARGETS = ['jacinto', 'onnxruntime']


def integers(x, grid):
    """Integers (less the zero point) of a tensor that lies on a grid."""
    steps = x.numpy().astype(np.float64) / grid.scale
    whole = np.rint(steps)
    np.testing.assert_allclose(steps, whole, atol=1e-2)
    assert whole.min() >= grid.low and whole.max() <= grid.high
    # Exactly: scale times integer, as float32 rounds it.
    np.testing.assert_array_equal(
        x.numpy(), whole.astype(np.float32) * np.float32(grid.scale)
    )
    return whole.astype(np.int64)


def requantize(steps, grid, clip):
    low, high = grid.low, grid.high
    if clip[0] is not None:
        low = max(low, ROUND[grid.rounding](clip[0] / grid.scale))
    if clip[1] is not None:
        high = min(high, ROUND[grid.rounding](clip[1] / grid.scale))
    return np.clip(ROUND[grid.rounding](steps), low, high).astype(np.int64)


class Layer:
    """A layer in NumPy: integer operands from the float parameters."""

    def __init__(self, weight, bias, bits, target, given, grid):
        w = weight.detach().numpy()
        b = bias.detach().numpy().astype(np.float64)
        if target == 'jacinto':
            high, width = 2 ** (bits - 1), 2 * bits
            scale = power_of_two(np.abs(w).max()) / high
            # The grid is widened until the bias fits the accumulator.
            need = np.abs(b).max() / (2.0 ** (width - 1) - 1) / given.scale
            scale = np.float32(max(scale, power_of_two(need)))
            self.weight = np.clip(ROUND['half_away'](w / scale), -high, high - 1)
        else:
            high, width = 2 ** (bits - 1) - 1, 32
            others = tuple(range(1, w.ndim))
            reach = np.abs(w).max(others, keepdims=True)
            scale = reach / np.float32(high)
            self.weight = np.rint(w / scale)
        self.weight = self.weight.astype(np.int64)
        unit = scale.ravel().astype(np.float64) * given.scale
        limit = 2.0 ** (width - 1)
        self.bias = np.clip(np.rint(b / unit), -limit, limit - 1).astype(np.int64)
        self.multiplier = (unit / grid.scale).astype(np.float32)

    def requantize(self, total, grid, clip=(None, None), axis=1):
        shape = [1] * total.ndim
        shape[axis] = -1
        total = total + self.bias.reshape(shape)
        # An accumulator beyond float32 is scaled in float64.
        exact = total.astype(np.float32)
        if not np.array_equal(exact, total):
            exact = total.astype(np.float64)
        steps = exact * self.multiplier.reshape(
            shape if self.multiplier.size > 1 else [1] * total.ndim
        )
        return requantize(steps, grid, clip)


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize(
    'options',
    [dict(), dict(stride=2, padding=1), dict(padding=2, groups=2)],
)
@pytest.mark.parametrize(
    'activation, clip',
    [
        (lambda x: x, (None, None)),
        (F.relu, (0.0, None)),
        (F.relu6, (0.0, 6.0)),
        (lambda x: x.clamp(-0.3, 0.7), (-0.3, 0.7)),
    ],
)
def test_convolution(target, bits, options, activation, clip):
    net = Forward(
        lambda net, x: activation(net.conv(x)), conv=nn.Conv2d(4, 6, 3, **options)
    )
    x = torch.randn(2, 4, 9, 9) * 4
    activations = calibrated(net, x, target=target, bits=bits).activations
    given = activations.host_grid('/input')
    grid = activations.host_grid('conv/conv2d')
    (out,) = run(net, x)
    layer = Layer(net.conv.weight, net.conv.bias, bits, target, given, grid)
    total = convolve(
        to_grid(x.numpy(), *given[:3], given.rounding).astype(np.int64),
        layer.weight,
        **options,
    )
    np.testing.assert_array_equal(
        integers(out, grid), layer.requantize(total, grid, clip)
    )


@pytest.mark.parametrize('target', TARGETS)
def test_normalization_is_part_of_the_weights(target):
    net = randomize_norms(
        Forward(
            lambda net, x: F.relu(net.norm(net.conv(x))),
            conv=nn.Conv2d(3, 6, 3, bias=False),
            norm=nn.BatchNorm2d(6),
        )
    ).eval()
    x = torch.randn(2, 3, 9, 9)
    activations = calibrated(net, x, target=target).activations
    given = activations.host_grid('/input')
    grid = activations.host_grid('conv/conv2d')
    (out,) = run(net, x)
    norm = net.norm
    factor = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
    bias = -norm.running_mean * factor + norm.bias
    layer = Layer(
        net.conv.weight * factor[:, None, None, None], bias, 8, target, given, grid
    )
    total = convolve(
        to_grid(x.numpy(), *given[:3], given.rounding).astype(np.int64), layer.weight
    )
    np.testing.assert_array_equal(
        integers(out, grid), layer.requantize(total, grid, (0.0, None))
    )


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('bits, features', [(8, 16), (16, 4096)])
def test_linear_is_exact_beyond_what_float32_holds(target, bits, features):
    net = Forward(lambda net, x: net.fc(x), fc=nn.Linear(features, 32))
    # Enough results that an inexact sum would round some of them otherwise.
    x = torch.randn(64, features) + 2
    with torch.no_grad():
        net.fc.weight.add_(net.fc.weight.abs().max())
    activations = calibrated(net, x, target=target, bits=bits).activations
    given = activations.host_grid('/input')
    grid = activations.host_grid('fc/linear')
    (out,) = run(net, x)
    layer = Layer(net.fc.weight, net.fc.bias, bits, target, given, grid)
    total = (
        to_grid(x.numpy(), *given[:3], given.rounding).astype(np.int64) @ layer.weight.T
    )
    assert (np.abs(total).max() > 2**24) == (bits == 16)
    np.testing.assert_array_equal(integers(out, grid), layer.requantize(total, grid))


def two_convolutions(function, target, bits=8):
    """A function of one or two tensors: its output's integers, its operands'."""
    net = Forward(
        lambda net, x: function(net.one(x), net.two(x)),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 1),
    )
    x = torch.randn(2, 3, 8, 8)
    quantization = calibrated(net, x, target=target, bits=bits)
    out, one, two = run(net, x, 'one', 'two')
    steps = quantization.plan.steps
    names = [
        steps[name].output for name in (list(steps)[-1], 'one/conv2d', 'two/conv2d')
    ]
    grids = [quantization.activations.host_grid(name) for name in names]
    return [
        integers(tensor, grid) for tensor, grid in zip((out, one, two), grids)
    ], grids


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize(
    'activation, clip', [(lambda x: x, (None, None)), (F.relu, (0.0, None))]
)
def test_addition(target, bits, activation, clip):
    (out, one, two), (grid, first, second) = two_convolutions(
        lambda one, two: activation(one + two), target, bits
    )
    one, two = one.astype(np.float32), two.astype(np.float32)
    if bits == 16 and target != 'jacinto':
        # Real numbers are added, as the engine does beyond 8 bits.
        total = one * np.float32(first.scale) + two * np.float32(second.scale)
        steps = total / np.float32(grid.scale)
    else:
        steps = one * np.float32(first.scale / grid.scale) + two * np.float32(
            second.scale / grid.scale
        )
    np.testing.assert_array_equal(out, requantize(steps, grid, clip))


@pytest.mark.parametrize('target', TARGETS)
def test_average_pooling(target):
    (out, one, _), (grid, first, _) = two_convolutions(
        lambda one, two: F.avg_pool2d(one, 2), target
    )
    mean = one.reshape(2, 4, 4, 2, 4, 2).sum((3, 5)).astype(np.float32) / 4
    steps = mean * np.float32(first.scale / grid.scale)
    np.testing.assert_array_equal(out, requantize(steps, grid, (None, None)))


def bilinear(x):
    """Doubles the last two axes."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = np.maximum((np.arange(2 * size) + 0.5) / 2 - 0.5, 0)
        first = np.floor(place).astype(int)
        second = np.minimum(first + 1, size - 1)
        share = (place - first).reshape([-1 if d == axis else 1 for d in range(4)])
        x = x.take(first, axis) * (1 - share) + x.take(second, axis) * share
    return x


@pytest.mark.parametrize('target', TARGETS)
def test_bilinear_resizing(target):
    (out, one, _), (grid, first, _) = two_convolutions(
        lambda one, two: F.interpolate(one, scale_factor=2, mode='bilinear'), target
    )
    steps = bilinear(one).astype(np.float32) * np.float32(first.scale / grid.scale)
    np.testing.assert_array_equal(out, requantize(steps, grid, (None, None)))


@pytest.mark.parametrize('target', TARGETS)
def test_nearest_resizing_repeats_integers(target):
    (out, one, _), (grid, first, _) = two_convolutions(
        lambda one, two: F.interpolate(one, scale_factor=2), target
    )
    assert grid == first
    np.testing.assert_array_equal(out, one.repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize('target', TARGETS)
def test_cat_joins_integers(target):
    net = Forward(
        lambda net, x: net.three(net.both(torch.cat([net.one(x), net.two(x)], 1))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 1),
        both=nn.Identity(),
        three=nn.Conv2d(8, 2, 1),
    )
    x = torch.randn(2, 3, 8, 8)
    quantization = calibrated(net, x, target=target)
    _, one, two, both = run(net, x, 'one', 'two', 'both')
    names = [
        quantization.plan.steps[name].output
        for name in ('/cat', 'one/conv2d', 'two/conv2d')
    ]
    assert len(set(names)) == 1
    grid = quantization.activations.host_grid(names[0])
    joined = np.concatenate([integers(one, grid), integers(two, grid)], 1)
    np.testing.assert_array_equal(integers(both, grid), joined)


@pytest.mark.parametrize('target', TARGETS)
def test_product_of_two_activations(target):
    (out, one, two), (grid, first, second) = two_convolutions(torch.matmul, target)
    steps = (one @ two) * (first.scale * second.scale / grid.scale)
    np.testing.assert_array_equal(out, requantize(steps, grid, (None, None)))


@pytest.mark.parametrize('target', TARGETS)
def test_sixteen_bits_are_close_to_float(toy_net, images, target):
    (reference,) = run(toy_net, images)
    calibrated(toy_net, images, target=target, bits=16, observer='minmax')
    (out,) = run(toy_net, images)
    assert 60 < snr(reference, out) < 120


@pytest.mark.parametrize('target', TARGETS)
def test_eight_bits_agree_with_training_within_one_step(toy_net, images, target):
    quantization = calibrated(toy_net, images, target=target)
    (tested,) = run(toy_net, images)
    quantization.set_phase('train')
    (simulated,) = run(toy_net, images)
    step = quantization.activations.host_grid('fc/linear').scale
    assert (tested - simulated).abs().max() <= step * 1.001


@pytest.mark.parametrize('phase', ['test', 'train'])
@pytest.mark.parametrize('constraint', ['saturate', 'reduce_weight_scale', False])
def test_bias_beyond_the_accumulator(phase, constraint):
    net = Forward(lambda net, x: net.conv(x), conv=nn.Conv2d(3, 4, 1))
    nn.init.constant_(net.conv.bias, 40.0)
    x = torch.randn(2, 3, 8, 8)
    (reference,) = run(net, x)
    calibrated(net, x, phase, constrain_bias=constraint)
    error = (run(net, x)[0] - reference).abs().max()
    # Its 16 bits end at 2**15 * 2**-8 * 2**-5 or so.
    assert (error > 20) == (constraint == 'saturate')


@pytest.mark.parametrize('dtype', [torch.bfloat16])
def test_autocast_does_not_touch_integers(toy_net, images, dtype):
    calibrated(toy_net, images)
    (expected,) = run(toy_net, images)
    with torch.autocast('cpu', dtype=dtype):
        (out,) = run(toy_net, images)
    assert torch.equal(out, expected)

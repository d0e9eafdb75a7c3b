"""The kernels of tests on integers against the chain of torch's operations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, randomize_norms

from mmquant_jacinto import QuantCalibrateModule, native
from mmquant_jacinto.execute.integer import layers, sampling
from mmquant_jacinto.quantizers.kernels import integer_kernels
from mmquant_jacinto.targets.fixed_point import FixedPoint, ProductTerms, SumTerms
from mmquant_jacinto.targets.grid import Grid, round_tensor
from mmquant_jacinto.targets.target import get_target

ROUNDINGS = ['half_even', 'half_up', 'half_away']
LIMITS, SCALE = (-37, 218), 0.0371
FIRST = Grid(0.0371, -37, 218, 256, 'half_even')
SECOND = Grid(0.0013, -128, 127, 256, 'half_even')
SUM = Grid(0.0409, -120, 135, 256, 'half_even')


@pytest.fixture(autouse=True)
def kernels():
    assert native.is_built(), 'set-up builds the kernels: see setup.py'


def expected(total, multiplier, rounding):
    steps = total.clone() if multiplier is None else total * multiplier
    integers = round_tensor(steps, rounding).clamp_(*LIMITS).float()
    return integers, integers * SCALE


def sums(*shape, dtype=torch.float32):
    # Ties among them: multiples of a half, once multiplied by 1/2.
    return torch.randint(-3000, 3000, shape).to(dtype)


@pytest.mark.parametrize('rounding', ROUNDINGS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'rows', 'alike'])
def test_requantize_is_multiply_round_clamp_scale(layout, dtype, rounding):
    shape = (70, 33) if layout == 'rows' else (3, 7, 70, 67)
    total = sums(*shape, dtype=dtype)
    multiplier = torch.rand(shape[1]) * 0.2 + 0.01
    multiplier[:2] = 0.5
    if layout == 'alike':
        multiplier = None
        total = total / 2
    elif layout != 'rows':
        multiplier = multiplier.view(-1, 1, 1)
    if layout == 'channels_last':
        total = total.contiguous(memory_format=torch.channels_last)
    wanted = expected(total, multiplier, rounding)
    assert integer_kernels.takes_sums(total, multiplier)
    found = integer_kernels.requantize(total, multiplier, rounding, LIMITS, SCALE)
    for ours, theirs in zip(found, wanted):
        assert ours.dtype is torch.float32
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)


def test_a_map_that_is_as_large_as_it_has_channels():
    total = sums(2, 16, 4, 4)
    multiplier = (torch.rand(16) * 0.2).view(-1, 1, 1)
    wanted = expected(total, multiplier, 'half_up')
    found = integer_kernels.requantize(total, multiplier, 'half_up', LIMITS, SCALE)
    assert torch.equal(found[0], wanted[0])


def test_what_it_cannot_work_on_is_not_taken():
    total, multiplier = sums(2, 3, 4, 4), torch.rand(3, 1, 1)
    takes = integer_kernels.takes_sums
    assert takes(total, multiplier)
    assert not takes(total[..., ::2], multiplier)
    assert not takes(total, multiplier[:1])
    assert not takes(total[:0], multiplier)
    assert not takes(total[0, 0], multiplier)
    assert not takes(total.half(), None)
    assert not takes(total.clone().requires_grad_(), multiplier)


def test_nan_stays_nan():
    total = torch.tensor([math.nan, 3.0, -math.inf, math.inf])
    integers, _ = integer_kernels.requantize(total, None, 'half_even', LIMITS, SCALE)
    assert integers[0].isnan()
    assert integers[1:].tolist() == [3.0, LIMITS[0], LIMITS[1]]


@pytest.mark.parametrize('name', ['jacinto', 'onnxruntime'])
def test_sums_and_products_are_those_of_the_engine(name):
    engine = get_target(name).arithmetic()
    x = torch.randint(FIRST.low, FIRST.high + 1, (5, 20_003)).float()
    y = torch.randint(SECOND.low, SECOND.high + 1, (5, 20_003)).float()
    terms = engine.sum_terms(FIRST, SECOND, SUM)
    wanted = engine.add(x, y, FIRST, SECOND, SUM)
    assert torch.equal(integer_kernels.add(x, y, terms), wanted)
    product = engine.product_terms(FIRST, SECOND, SUM)
    wanted = engine.multiply(x, y, FIRST, SECOND, SUM)
    assert torch.equal(integer_kernels.multiply(x, y, product), wanted)


def test_what_an_engine_does_otherwise_has_no_terms():
    wide = Grid(0.001, -32768, 32767, 65536, 'half_even')
    for name in ('onnxruntime', 'openvino'):
        assert get_target(name).arithmetic().sum_terms(FIRST, SECOND, SUM) != (
            FixedPoint().sum_terms(FIRST, SECOND, SUM)
        )
    assert get_target('onnxruntime').arithmetic().sum_terms(wide, SECOND, SUM) is None
    assert isinstance(FixedPoint().sum_terms(wide, SECOND, SUM), SumTerms)
    assert isinstance(FixedPoint().product_terms(wide, SECOND, SUM), ProductTerms)


@pytest.mark.parametrize('name', ['jacinto', 'onnxruntime', 'openvino'])
def test_an_arithmetic_of_others_is_taken_as_it_is(name):
    engine = type(get_target(name).arithmetic())

    class Own(engine):
        def add(self, x, y, *grids):
            return x

        def multiply(self, x, y, *grids):
            return x

        def scale(self, total, *others):
            return super().scale(total, *others) + 1

    assert Own().sum_terms(FIRST, SECOND, SUM) is None
    assert Own().product_terms(FIRST, SECOND, SUM) is None
    assert Own().plain_sums(torch.ones(1, 2, 3, 3), FIRST, SUM) is None
    total, multiplier = torch.ones(1, 2, 3, 3), torch.rand(2, 1, 1)
    wanted = engine().scale(total.clone(), multiplier, FIRST, SUM) + 1
    assert torch.equal(Own().scale(total, multiplier, FIRST, SUM), wanted)


def test_tables_and_integers():
    x = torch.randint(FIRST.low, FIRST.high + 1, (5, 20_003)).float()
    table = torch.randint(-128, 128, (256,)).float()
    integers, real = integer_kernels.look_up(x, table, FIRST.low, SCALE)
    wanted = table[(x - FIRST.low).long()]
    assert torch.equal(integers, wanted)
    assert torch.equal(real, wanted * SCALE)
    assert torch.equal(integer_kernels.to_integers(x * SCALE, SCALE), x)


def test_interpolation_is_that_of_the_chain(monkeypatch):
    x = torch.randint(-128, 128, (3, 37, 9, 11)).float()
    rows, columns = torch.rand(2, 3, 500) * 14 - 2
    rows[:, :4] = torch.tensor([0.0, 8.0, math.nan, math.inf])
    columns[:, 4:8] = torch.tensor([10.0, -1.0, -math.inf, 4e9])
    found = sampling.interpolate(x, rows, columns)
    monkeypatch.setattr(native, '_library', None)
    wanted = sampling.interpolate(x, rows, columns)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert 0 < wanted.isnan().sum() < 0.1 * wanted.numel()
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


def forward(net, x):
    """Sums, products, a function of one tensor, and sums that float32 cannot hold."""
    x = F.relu(net.norm(net.stem(x)))
    x = x * torch.sigmoid(x) + x
    return net.head(F.max_pool2d(net.wide(x), 2))


@pytest.mark.parametrize(
    'target, bits',
    [('jacinto', 8), ('jacinto', 16), ('onnxruntime', 8), ('openvino', 8), ('tidl', 8)],
)
def test_a_network_computes_what_it_computes_without_them(target, bits, monkeypatch):
    model = Forward(
        forward,
        stem=nn.Conv2d(3, 256, 3),
        norm=nn.BatchNorm2d(256),
        wide=nn.Conv2d(256, 16, 3),
        head=nn.Conv2d(16, 4, 1),
    )
    with torch.no_grad():
        # All of one sign and large: the longest of sums.
        model.wide.weight.abs_().add_(1.0)
    model = randomize_norms(model).eval()
    images = torch.randn(2, 3, 32, 32)
    module = QuantCalibrateModule(model, images[:1], target=target, bits=bits)
    module.quantization.set_phase('observe')
    found = []
    with torch.no_grad():
        module(images)
        module.quantization.activations.settle()
        for library, most in ((native._library, 99), (None, 99), (native._library, 0)):
            monkeypatch.setattr(native, '_library', library)
            monkeypatch.setattr(layers, 'MOST_PARTS', most)
            module.quantization.set_phase('test')
            found.append(module(images))
            made = module.quantization.executor.behaviour._layers.values()
            assert any(layer.parts for layer in made) == bool(most)
    assert len(found[0].unique()) > 3
    # The last computes in float64 what the others compute in parts.
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])

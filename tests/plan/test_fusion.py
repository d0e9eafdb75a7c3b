"""What layers read from calls that the table of functions does not know."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, calibrated, make_plan

from mmquant_jacinto import QuantTrainModule
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.quantizers.weights import step_of
from mmquant_jacinto.targets.formats import TensorFormat


def decibels(signal, noisy):
    return 10 * torch.log10(signal.square().sum() / (signal - noisy).square().sum())


def assert_close(net, *inputs, phase='test', least=60):
    """Quantizes a net to 16 bits and compares; returns its quantization."""
    net.eval()
    with torch.no_grad():
        expected = net(*inputs)
    quantization = calibrated(net, *inputs, phase, bits=16, observer='minmax')
    out = net(*inputs)
    assert not torch.equal(out, expected)
    assert decibels(expected, out) > least
    return quantization


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8)


class Cube(torch.autograd.Function):
    """Which no torch function mode sees."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * grad * x**2


def set_corner(x):
    x = x.clone()
    x[..., 0, 0] = 7.0
    return x


UNKNOWN = {
    'autograd function': Cube.apply,
    'where': lambda x: torch.where(x > 0, x, 0.1 * x),
    'sine': torch.sin,
    'in place': set_corner,
    'maximum along an axis': lambda x: x.max(1, keepdim=True)[0] + 0 * x,
    'several, moved': lambda x: torch.cumsum(x, 1).flip(1).transpose(2, 3),
}


@pytest.mark.parametrize('phase', ['train', 'test'])
@pytest.mark.parametrize('name', UNKNOWN)
def test_layer_behind_an_unknown_function_is_quantized(name, image, phase):
    net = Forward(
        lambda net, x: net.two(UNKNOWN[name](net.one(x))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 4, 3),
    )
    quantization = assert_close(net, image, phase=phase)
    plan = quantization.plan
    assert set(plan.weights) == {'one', 'two'}
    assert plan.in_float == {}
    assert plan.steps['two/conv2d'].inputs[0] is not None


def test_unknown_reader_keeps_an_activation_out_of_the_layer(image):
    def forward(net, x):
        y = net.one(x)
        return F.relu(y) + torch.sin(y)

    plan = make_plan(Forward(forward, one=nn.Conv2d(3, 4, 1)), image)
    assert plan.steps['/relu'].chain == '/relu'


def test_layer_on_a_constant_is_quantized():
    net = Forward(
        lambda net, x: x + net.two(net.queries.weight),
        two=nn.Linear(8, 8),
        queries=nn.Embedding(5, 8),
    )
    plan = assert_close(net, torch.randn(5, 8)).plan
    assert plan.steps['two/linear'].entries == ((0, 'two/linear:input'),)
    assert list(plan.in_float) == ['queries.weight']


def test_constant_in_a_product_is_quantized():
    net = Forward(lambda net, x: net.one(x) @ net.table, one=nn.Linear(8, 8))
    net.table = nn.Parameter(torch.randn(8, 6))
    plan = assert_close(net, torch.randn(5, 8)).plan
    assert None not in plan.steps['/matmul'].inputs
    assert plan.in_float == {}


def test_constant_in_cat_takes_part_in_the_range(image):
    net = Forward(
        lambda net, x: net.two(
            torch.cat([net.one(x), torch.full((2, 1, 8, 8), 50.0)], 1)
        ),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(5, 4, 1),
    )
    quantization = assert_close(net, image, least=50)
    # With 16 bits a range reaches twice as far as what was seen.
    assert quantization.activations.high.max() == 100


def test_what_is_only_returned_together_keeps_grids_of_its_own(image):
    net = Forward(
        lambda net, x: torch.cat([net.one(x) * 1000, net.two(x).sigmoid()], 1),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(3, 4, 1),
    )
    with torch.no_grad():
        expected = net(image)[:, 4:]
    plan = calibrated(net, image).plan
    parts = [plan.steps[name].output for name in ('/mul', '/sigmoid')]
    assert len(set(parts)) == 2
    assert {spec.kind for spec in plan.activations if spec.name in parts} == {'output'}
    assert decibels(expected, net(image)[:, 4:]) > 30


def assert_precise(function, image):
    """A function between two layers is as in float, also in 8 bits and backward."""
    net = Forward(
        lambda net, x: net.two(function(net.one(x))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    assert_close(copy.deepcopy(net), image, least=50)
    calibrated(net, image, 'train')
    net(image).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    'function',
    {
        'reflected': lambda x: 1 / (1 + torch.exp(-8 * x)),
        'reflected power': lambda x: 2 ** (8 * x).clamp(-8, 8),
        'power of a number': lambda x: torch.pow(2.0, x),
        'root': lambda x: (x.abs() * 1e-4 + 1e-6) ** 0.5 + x,
        'keyword': lambda x: torch.div(input=x, other=x.exp()),
        'bound of a layer': lambda x: x / x.abs().clamp(min=1e-3),
        'sum of exponentials': lambda x: (9 * x).exp() / (9 * x).exp().sum(1, True),
        'also read by others': lambda x: (lambda y: x / y + y * 1e3)(x.abs() + 1e-3),
    }.values(),
)
def test_what_is_divided_by_does_not_become_zero(function, image):
    assert_precise(function, image)


def test_weight_that_is_part_of_a_parameter(image):
    def forward(net, x):
        first, second = net.body.weight.chunk(2)
        return F.conv2d(x, first, net.body.bias[:3]) * F.conv2d(x, second)

    net = Forward(forward, body=nn.Conv2d(3, 6, 1))
    plan = assert_close(net, image).plan
    assert {name: spec.rows for name, spec in plan.weights.items()} == {
        'body[0:3]': (0, 3),
        'body[3:6]': (3, 6),
    }
    assert plan.to_json() == Plan.from_json(plan.to_json()).to_json()


class StandardizedConv(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
@pytest.mark.parametrize('phase', ['train', 'test'])
def test_weight_that_is_computed_from_parameters(image, phase, target):
    net = Forward(
        lambda net, x: F.relu(net.one(net.first(x))),
        first=nn.Conv2d(3, 3, 1),
        one=StandardizedConv(3, 4, 3),
    )
    expected = net(image)
    plan = calibrated(
        net,
        image,
        phase,
        target=target,
        bits=16,
        overrides=dict(one=dict(weight=4, activation=16)),
    ).plan
    step = plan.steps['one/conv2d']
    assert step.weight_format.bits == 4
    assert plan.to_json() == Plan.from_json(plan.to_json()).to_json()
    # The weight is on a grid of 4 bits, and nothing else is.
    assert 10 < decibels(expected, net(image)) < 40
    if phase == 'train':
        net(image).sum().backward()
        assert net.one.weight.grad.any()


@pytest.mark.parametrize('phase', ['train', 'test'])
def test_weight_that_is_computed_from_activations(image, phase):
    def forward(net, x):
        kernels = net.controller(F.adaptive_avg_pool2d(x, 1)).view(2 * 4, 3, 1, 1)
        return F.conv2d(x.reshape(1, 6, 8, 8), kernels, groups=2)

    plan = assert_close(
        Forward(forward, controller=nn.Conv2d(3, 12, 1)), image, phase=phase
    ).plan
    assert plan.steps['/conv2d'].kind == 'compute'
    assert plan.steps['/conv2d'].inputs == ('/input', 'controller/conv2d')
    assert plan.in_float == {}


def test_step_of_a_computed_weight():
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.2]])
    fmt = TensorFormat(bits=8, narrow_range=True)
    assert step_of(weight, 0, fmt).tolist() == [[pytest.approx(3 / 127)]]
    fmt = TensorFormat(bits=8, per_channel=True, power_of_two=True)
    assert step_of(weight, 0, fmt).flatten().tolist() == [4 / 128, 0.5 / 128]


def inverse_sigmoid(x, eps=1e-5):
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


@pytest.mark.parametrize('phase', ['train', 'test'])
def test_logarithms_of_small_numbers_stay_finite(phase):
    net = Forward(
        lambda net, x: net.two(inverse_sigmoid(net.one(x).sigmoid())),
        one=nn.Linear(4, 4),
        two=nn.Linear(4, 4),
    )
    x = 8 * torch.randn(64, 4)
    expected = net(x).detach()
    calibrated(net, x, phase, target='onnxruntime', observer='minmax')
    out = net(x)
    assert decibels(expected, out) > 25
    if phase == 'train':
        out.sum().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())


def test_call_on_zeros_leaves_the_shared_weight_as_fine_as_it_is():
    net = Forward(
        lambda net, x: net.head(torch.zeros_like(x) * x) + net.head(x),
        head=nn.Linear(8, 8),
    )
    nn.init.constant_(net.head.bias, 4.0)
    assert_close(net, torch.randn(16, 8))


def test_activation_in_place_on_a_view_trains():
    net = Forward(
        lambda net, x: net.two(F.relu(net.one(x), inplace=True)),
        one=nn.Linear(4, 4),
        two=nn.Linear(4, 4),
    )
    x = torch.randn(2, 3, 4)  # of three axes: `linear` returns a view
    quantization = calibrated(net, x, 'train')
    # As in a part of the model that calibration did not reach.
    quantization.activations.count.zero_()
    quantization.activations.refresh()
    net(x).sum().backward()
    assert net.one.weight.grad.any()


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('function', [torch.add, torch.mul])
@pytest.mark.parametrize('swapped', [False, True])
def test_operands_of_two_shapes(image, function, bits, swapped):
    def forward(net, x):
        x = net.one(x)
        operands = x, x.mean((2, 3), keepdim=True)
        return function(*operands[:: -1 if swapped else 1])

    net = Forward(forward, one=nn.Conv2d(3, 4, 1))
    expected = net(image)
    calibrated(net, image, target='onnxruntime', bits=bits, observer='minmax')
    assert decibels(expected, net(image)) > 25


def test_training_may_concatenate_something_else_where_a_plan_has_a_constant(images):
    def forward(net, x):
        out = net.conv(x)
        if net.training:
            out = torch.cat([out, out, out], 1)[:, 8:]
        return torch.cat([out, torch.ones_like(out)], 1)

    net = Forward(forward, conv=nn.Conv2d(3, 4, 3))
    model = QuantTrainModule(net, images).train()
    for _ in range(2):
        out = model(images)
    assert out.shape == (2, 8, 14, 14)
    assert torch.equal(out[:, 4:], torch.ones(2, 4, 14, 14))


def test_what_is_moved_a_thousand_times_is_read_as_before(image):
    def often(net, x):
        x = torch.cat([net.first(x), net.second(x)], 1)
        for _ in range(1000):
            x = x.transpose(2, 3)
        return net.last(x)

    net = Forward(
        often,
        first=nn.Conv2d(3, 4, 1),
        second=nn.Conv2d(3, 4, 1),
        last=nn.Conv2d(8, 2, 1),
    )
    quantization = calibrated(net, image, 'test')
    steps = quantization.plan.steps
    assert steps['/cat'].output is not None
    assert steps['first/conv2d'].output == steps['second/conv2d'].output


def spline_net(margin=lambda x: x.clamp(0, 1)):
    """Samples along a polynomial through seven points that a layer finds."""
    powers = torch.arange(7)
    knots, places = (torch.linspace(0, 1, n)[:, None] ** powers for n in (7, 64))

    def forward(net, x):
        points = net.points(x.mean((2, 3))).reshape(-1, 7, 2)
        curve = margin(torch.matmul(net.places, torch.matmul(net.inverse, points)))
        grid = 2.0 * curve.reshape(-1, 8, 8, 2) - 1.0
        return net.two(F.grid_sample(net.one(x), grid, align_corners=True))

    layers = dict(one=nn.Conv2d(3, 4, 1), two=nn.Conv2d(4, 4, 1))
    net = Forward(forward, points=nn.Linear(3, 14), **layers)
    net.register_buffer('places', places)
    net.register_buffer('inverse', torch.linalg.inv(knots))
    return net


def test_spline_that_says_where_to_sample_stays_in_float(image):
    image = F.avg_pool2d(image, 3, 1, 1)
    plan = assert_close(spline_net(), image).plan
    quantized = {name for name, step in plan.steps.items() if step.output is not None}
    assert not quantized & {'/matmul', '/matmul#1', '/clamp', '/mul', '/sub'}
    assert {'one/conv2d', 'two/conv2d'} <= quantized


def test_overrides_put_a_spline_on_grids(image):
    plan = make_plan(spline_net(), image, overrides={'': 16})
    assert None not in [*plan.steps['/matmul'].inputs, plan.steps['/matmul'].output]


def test_positions_without_products_of_constants_have_grids(image):
    def forward(net, x):
        grid = 2.0 * net.points(x).sigmoid().permute(0, 2, 3, 1) - 1.0
        return net.one(F.grid_sample(x, grid, align_corners=False))

    layers = dict(one=nn.Conv2d(3, 4, 1), points=nn.Conv2d(3, 2, 1))
    plan = make_plan(Forward(forward, **layers), image)
    assert None not in [plan.steps[name].output for name in ('/sigmoid', '/mul')]


def test_spline_that_something_else_reads_has_grids(image):
    net = spline_net(margin=lambda x: net.seen.append(x) or x)
    net.seen = []
    sampled = net.forward

    def forward(x):
        net.seen.clear()
        return sampled(x), net.seen[0]

    net.forward = forward
    assert None not in make_plan(net, image).steps['/matmul#1'].inputs

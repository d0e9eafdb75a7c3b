"""docs/integer_semantics.md, word for word: its formulas give every integer.

The page's code runs on the numbers of the exported file, as an engine would. What it
gives is compared with the integer model, and with the engine where it runs here. Scales
are multiples of one another, so that ties are frequent and no float is round.
"""

import importlib.util
import re
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import pairs
from paths import ROOT
from reference import convolve
from torch import nn
from toy_models import Forward, make_plan

from mmquant_jacinto import quantize_model

pytest.importorskip('onnxruntime')
pytest.importorskip('onnx_ir')

from onnx import numpy_helper  # noqa: E402

from mmquant_jacinto.export.exporter import export_onnx  # noqa: E402
from mmquant_jacinto.export.session import Session  # noqa: E402
from mmquant_jacinto.targets.grid import Grid  # noqa: E402
from mmquant_jacinto.targets.target import get_target  # noqa: E402

PAGE = (ROOT / 'docs' / 'integer_semantics.md').read_text()
page = types.ModuleType('integer_semantics')
exec('\n'.join(re.findall(r'```python\n(.*?)```', PAGE, re.S)), page.__dict__)

# Target to the suffix of its formulas.
SUFFIXES = dict.fromkeys(('onnxruntime', 'tidl', 'tensorrt'), 'onnxruntime')
SUFFIXES |= {'jacinto': 'jacinto', 'openvino': 'openvino'}
# What runs a target's files here, and rounds as its test mode does.
BACKENDS = {'onnxruntime': 'onnxruntime', 'tidl': 'onnxruntime', 'openvino': 'openvino'}
SEEDS = 1, 3
OPEN = (None, None)
CHANNELS = 4


def formula(name, target):
    """The page's function of that name for a target."""
    own = getattr(page, f'{name}_{SUFFIXES[target]}', None)
    return own or getattr(page, f'{name}_onnxruntime')


def spread_ranges(quantization, seed):
    """Lets all scales but the input's be multiples of one number.

    The last one is the coarsest: half of what it rounds are ties.
    """
    activations, plan = quantization.activations, quantization.plan
    unit = float(torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    unit = (unit + 0.5) / 100
    last = list(plan.steps.values())[-1].output
    for index, spec in enumerate(plan.activations):
        if spec.name == '/input' or spec.format.power_of_two:
            continue
        low = min(float(activations.low[index]), 0.0)
        step = unit * (1 + (seed // 3 + index) % 3)
        step += unit * (2 + seed % 3) * (spec.name == last)
        zero = min(round(-low / step), 255)
        if spec.format.symmetric:
            reach = 127 * step, 127 * step
            if spec.format.unsigned_if_positive and low == 0:
                reach = 0.0, 255 * step
        else:
            reach = zero * step, (255 - zero) * step
        activations.low[index], activations.high[index] = -reach[0], reach[1]


def stored_layer(model, name):
    """Integers of weight and bias, and the weight's scale, as a file has them."""
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {out: node for node in model.graph.node for out in node.output}
    node = next(n for n in model.graph.node if n.name == f'{name}/conv2d')
    weight, scale = (stored[i] for i in makers[node.input[1]].input[:2])
    bias = np.zeros(len(weight), np.int64)
    if len(node.input) > 2 and node.input[2] in makers:
        bias = stored[makers[node.input[2]].input[0]].astype(np.int64)
    elif len(node.input) > 2:
        bias = stored[node.input[2]]  # real numbers, of TensorRT
    return weight.astype(np.int64), scale.reshape(-1, 1, 1), bias.reshape(-1, 1, 1)


class Net:
    """A net ``function(one(x), two(x))``, or ``function(one(x), net)``, on few values.

    Args:
        function (Callable): Of one or two tensors, or of one and the net, whose layer
            ``two`` it may call.
        target (str): What it is quantized for.
        seed (int): Of weights and scales.
        bias (bool): Whether layers have one.
    """

    def __init__(self, function, target, seed=0, bias=True):
        torch.manual_seed(seed)
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        layers = {
            name: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=bias)
            for name in ('one', 'two')[: len(names)]
        }

        def forward(net, x):
            operands = [net.one(x)]
            if len(names) == 2:
                operands.append(net if names[1] == 'net' else net.two(x))
            return function(*operands)

        net = Forward(forward, **layers).eval()
        self.x = torch.randint(-8, 8, (2, CHANNELS, 24, 24)) / 8.0
        plan = make_plan(net, self.x, target=target, observer='minmax')
        self.quantization = quantize_model(net, plan)
        self.quantization.set_phase('observe')
        with torch.no_grad():
            net(self.x)
            self.quantization.activations.observing = False
            spread_ranges(self.quantization, seed)
            self.quantization.set_phase('test')
            self.out = net(self.x)
        self.target, self.steps = target, plan.steps
        self.grid = self.grid_of(list(plan.steps)[-1])
        self.given = self.named_grid('/input')
        # The file of jacinto is for another engine, with the same integers.
        name = 'onnxruntime' if target == 'jacinto' else target
        self.exported = export_onnx(net, self.x, name, allow_violations=True)
        self.input = formula('quantize', target)(self.x.numpy(), self.given)

    def named_grid(self, name):
        grid = self.quantization.activations.host_grid(name)
        return page.Grid(np.float32(grid.scale), int(grid.low), int(grid.high))

    def grid_of(self, step):
        """Grid of what a step gives."""
        return self.named_grid(self.steps[step].output)

    def sums(self, name, q=None):
        """Exact sums of a layer, its bias and its scale."""
        weight, scale, bias = stored_layer(self.exported.model, name)
        if bias.dtype.kind == 'f':
            bias = np.rint(bias / (scale * self.given.scale)).astype(np.int64)
        return convolve(self.input if q is None else q, weight), bias, scale

    def layer(self, name, step=None, clip=OPEN, **options):
        """Integers of a layer, with what is one with it, and their grid."""
        grid = self.grid_of(step or f'{name}/conv2d')
        found = formula('layer', self.target)
        return found(*self.sums(name), self.given, grid, clip, **options), grid

    def both(self):
        """Integers of both layers, and their grids."""
        (a, first), (b, second) = self.layer('one'), self.layer('two')
        return a, b, first, second, self.grid

    def check(self, expected):
        """Asserts that model and engine have these integers."""
        factor = self.grid.scale
        assert len(np.unique(expected)) > 4
        real = expected.astype(np.float32) * factor
        np.testing.assert_array_equal(self.out.numpy(), real)
        backend = BACKENDS.get(self.target)
        if backend is None or importlib.util.find_spec(backend) is None:
            return
        (found,) = Session(self.exported.model, backend)(self.x).values()
        found = np.rint(found.numpy() / factor).astype(np.int64)
        np.testing.assert_array_equal(found, expected)


def every(*targets):
    """Parametrizes over targets and seeds."""

    def decorate(test):
        test = pytest.mark.parametrize('seed', SEEDS)(test)
        return pytest.mark.parametrize('target', targets or list(SUFFIXES))(test)

    return decorate


def moved(x):
    """A call that moves integers, so that the layer before has a grid of its own."""
    return F.max_pool2d(x, 1)


def windows(q, rows, columns):
    """Non-overlapping windows, their elements along the last axis."""
    n, c, height, width = q.shape
    split = q.reshape(n, c, height // rows, rows, width // columns, columns)
    split = split.transpose(0, 1, 2, 4, 3, 5)
    return split.reshape(n, c, height // rows, width // columns, rows * columns)


@every()
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('clip', [OPEN, (0.0, None), (0.0, 0.75)])
def test_layer(target, seed, bias, clip):
    functions = {
        OPEN: lambda x: x,
        (0.0, None): lambda x: F.relu(x),
        (0.0, 0.75): lambda x: x.clamp(0.0, 0.75),
    }
    net = Net(functions[clip], target, seed, bias)
    net.check(net.layer('one', clip=clip)[0])


@every('onnxruntime')
def test_transposed_convolution(target, seed):
    net = Net(lambda x, net: F.conv_transpose2d(x, *net.two.parameters()), target, seed)
    graph = net.exported.model.graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    layer = next(node for node in graph.node if node.op_type == 'ConvTranspose')
    added, scaled = (n for n in graph.node if n.name.startswith(layer.name + '~'))
    weight = stored[makers[layer.input[1]].input[0]].astype(np.int64)
    total = convolve(net.layer('one')[0], weight.swapaxes(0, 1))
    bias = stored[added.input[1]]
    # The file has the product of both scales.
    unit, one = stored[scaled.input[1]], page.Grid(np.float32(1), 0, 255)
    net.check(formula('transposed', target)(total, bias, unit, one, net.grid))


@every('openvino')
@pytest.mark.parametrize('name', ['silu', 'hardswish'])
def test_function_that_openvino_computes_with_the_layer(target, seed, name):
    function = getattr(F, name)
    net = Net(lambda x: function(x), target, seed)
    own = getattr(page, f'{name}_openvino')
    net.check(net.layer('one', f'/{name}', function=own)[0])


@every('jacinto', 'onnxruntime', 'tidl')
def test_addition(target, seed):
    net = Net(lambda a, b: a + b, target, seed)
    net.check(formula('add', target)(*net.both()))


@every('jacinto', 'onnxruntime', 'tidl')
def test_addition_with_relu(target, seed):
    net = Net(lambda a, b: F.relu(a + b), target, seed)
    net.check(formula('add', target)(*net.both(), (0.0, None)))


@every('openvino')
def test_addition_that_openvino_computes_with_the_layer_of_both(target, seed):
    net = Net(lambda a, b: a + b, target, seed)
    # Of two layers the later is open.
    a, first = net.layer('one')
    real = page.real_layer_openvino(*net.sums('two'), net.given)
    net.check(page.add_to_layer_openvino(real, a, first, net.grid, is_part=True))


@every('openvino')
def test_addition_that_openvino_computes_with_a_layer(target, seed):
    net = Net(lambda a, b: a + moved(b), target, seed)
    b, second = net.layer('two')
    real = page.real_layer_openvino(*net.sums('one'), net.given)
    net.check(page.add_to_layer_openvino(real, b, second, net.grid))


@every('openvino')
@pytest.mark.parametrize('clip', [OPEN, (0.0, None)])
def test_addition_that_openvino_computes_in_the_memory_of_the_other(target, seed, clip):
    functions = {
        OPEN: lambda a, net: net.two(F.relu(a)) + a,
        (0.0, None): lambda a, net: F.relu(net.two(F.relu(a)) + a),
    }
    net = Net(functions[clip], target, seed)
    a, first = net.layer('one')
    clamped = net.grid_of('/relu')
    x = page.quantize_openvino(a * first.scale, clamped, (0.0, None))
    real = page.real_layer_openvino(*net.sums('two', x), clamped)
    net.check(page.add_in_layer_openvino(real, a, first, net.grid, clip))


@every('openvino')
def test_addition_of_quantized_tensors_in_openvino(target, seed):
    net = Net(lambda a, b: F.silu(a) + moved(b), target, seed)
    a, first = net.layer('one', '/silu', function=page.silu_openvino)
    b, second = net.layer('two')
    net.check(page.add_openvino(a, b, first, second, net.grid))


@every('openvino')
@pytest.mark.parametrize('turned', [True, False])
def test_addition_leads_with_what_nothing_else_reads(target, seed, turned):
    functions = {
        False: lambda a, net: F.silu(net.two(y := F.silu(a))) + y,
        True: lambda a, net: (y := F.silu(a)) + F.silu(net.two(y)),
    }
    net = Net(functions[turned], target, seed)
    a, first = net.layer('one', '/silu', function=page.silu_openvino)
    second = net.grid_of('/silu#1')
    sums = net.sums('two', a)
    b = page.layer_openvino(*sums, first, second, function=page.silu_openvino)
    net.check(page.add_openvino(b, a, second, first, net.grid))


@every('onnxruntime', 'tidl', 'tensorrt', 'openvino')
def test_matrix_product(target, seed):
    net = Net(lambda a, b: torch.matmul(a, b), target, seed)
    a, b, *grids = net.both()
    net.check(page.product_onnxruntime(a @ b, *grids))


@every('jacinto')
@pytest.mark.parametrize('function', [torch.matmul, torch.mul])
def test_products_of_jacinto(target, seed, function):
    net = Net(lambda a, b: function(a, b), target, seed)
    a, b, *grids = net.both()
    total = a @ b if function is torch.matmul else a * b
    net.check(page.product_jacinto(total, *grids))


@every('onnxruntime', 'tidl', 'tensorrt', 'openvino')
def test_product_of_elements(target, seed):
    net = Net(lambda a, b: moved(a) * moved(b), target, seed)
    net.check(page.multiply_onnxruntime(*net.both()))


@every()
def test_mean(target, seed):
    net = Net(lambda a: pairs(a).mean((2, 3)), target, seed)
    q, grid = net.layer('one')
    total = q.reshape(len(q), -1, 2).sum(-1)
    net.check(formula('mean', target)(total, 2, grid, net.grid))


@every()
def test_average_pooling(target, seed):
    net = Net(lambda a: F.avg_pool2d(a, 2), target, seed)
    q, grid = net.layer('one')
    if target == 'jacinto':
        found = page.mean_jacinto(windows(q, 2, 2).sum(-1), 4, grid, net.grid)
    else:
        found = formula('pool', target)(windows(q, 2, 2), grid, net.grid)
    net.check(found)


@every('onnxruntime')
def test_average_pooling_by_no_power_of_two(target, seed):
    net = Net(lambda a: F.avg_pool2d(a, (2, 3)), target, seed)
    q, grid = net.layer('one')
    total = windows(q, 2, 3).sum(-1)
    net.check(page.exact_pool_onnxruntime(total, 6, grid, net.grid))


@every('onnxruntime', 'tidl', 'openvino')
@pytest.mark.parametrize('name', ['sigmoid', 'silu', 'hardsigmoid', 'hardswish'])
def test_function(target, seed, name):
    function = torch.sigmoid if name == 'sigmoid' else getattr(F, name)
    net = Net(lambda a: function(moved(a)), target, seed)
    q, grid = net.layer('one')
    own = formula(name, target)
    net.check(formula('function', target)(q, own, grid, net.grid))


@every('onnxruntime')
def test_softmax(target, seed):
    net = Net(lambda a: a.softmax(1), target, seed)
    q, grid = net.layer('one')
    net.check(page.softmax_onnxruntime(q, 1, grid, net.grid))


@every('onnxruntime')
def test_group_normalization(target, seed):
    weight, bias = torch.tensor([0.5, -1.0]), torch.tensor([0.25, -0.5])
    net = Net(lambda a: F.group_norm(a[:, :2], 2, weight, bias), target, seed)
    q, grid = net.layer('one')
    rows = q[:, :2].reshape(2, 2, -1)
    shaped = (item.numpy()[:, None] for item in (weight, bias))
    found = page.group_norm_onnxruntime(rows, *shaped, 1e-5, grid, net.grid)
    net.check(found.reshape(2, 2, *q.shape[2:]))


@every('onnxruntime')
def test_layer_normalization(target, seed):
    weight, bias = torch.linspace(0.5, 2, 24), torch.linspace(-1, 1, 24)
    net = Net(lambda a: F.layer_norm(a, (24,), weight, bias), target, seed)
    q, grid = net.layer('one')
    given = weight.numpy(), bias.numpy(), 1e-5, grid, net.grid
    net.check(page.layer_norm_onnxruntime(q, *given))


@every('onnxruntime')
@pytest.mark.parametrize('size', [(48, 48), (17, 31)])
def test_bilinear_resizing(target, seed, size):
    net = Net(lambda a: F.interpolate(a, size, mode='bilinear'), target, seed)
    q, grid = net.layer('one')
    net.check(page.bilinear_onnxruntime(q, size, grid, net.grid))


@pytest.mark.parametrize('target', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('behind_layer', [True, False])
def test_channels_with_factors(target, behind_layer):
    """Against the class of the engine; files with factors: test_openvino_arithmetic."""
    torch.manual_seed(0)
    x = torch.randint(-300, 300, (2, 4, 32, 32)) / 128
    factor = torch.tensor([0.7, 1.0, 1.3, 2.1]).view(-1, 1, 1)
    for low in (0, -37):
        own = page.Grid(np.float32(0.0117), low, low + 255)
        grid = Grid(float(own.scale), low, low + 255, 256, 'half_even')
        steps = get_target(target).arithmetic().quantize(x, grid, factor, behind_layer)
        steps = steps.round().clamp(low, low + 255).numpy()
        is_fused = behind_layer and target == 'openvino'
        name = 'quantize_behind_layer' if is_fused else 'quantize'
        found = formula(name, target)(x.numpy(), own, factor=factor.numpy())
        np.testing.assert_array_equal(found, steps)

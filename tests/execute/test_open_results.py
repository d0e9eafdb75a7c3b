"""What is computed where a function has one grid with the layer in front."""

import copy

import pytest
import torch
import torch.nn.functional as F
from smooth_functions import SPELLINGS, smooth_net
from torch import nn
from toy_models import Forward, calibrated, make_plan
from toy_plans import conv

from mmquant_jacinto import quantize_model
from mmquant_jacinto.targets.grid import round_tensor

FUSING = ('openvino', 'tensorrt')


@pytest.fixture
def x():
    return torch.randn(2, 3, 20, 20)


def reference(net, quantization, function, x):
    """Exact sums as real numbers, the function in float, one rounding."""
    grids = {s.name: quantization.activations.host_grid(s.name) for s in net.specs}
    integer = quantization.executor.behaviour
    names = list(grids)

    def put(x, grid):
        steps = round_tensor((x / grid.scale).clone(), 'half_even')
        return steps.clamp(grid.low, grid.high)

    x, given = put(x, grids[names[0]]).double(), grids[names[0]]
    for name, groups, end in (('stem', 1, names[1]), ('depth', 8, names[2])):
        weight = integer.integer_weight(name).double()
        total = F.conv2d(x, weight, integer.integer_bias(name, given), groups=groups)
        scale = integer.fallback.grids.step(name).double().view(-1, 1, 1)
        real = function((total * scale * given.scale).float())
        given = grids[end]
        x = put(real, given).double()
    return x, given


@pytest.mark.parametrize('target', FUSING)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_exact_sums_are_the_functions_operand(x, target, spelling):
    function = SPELLINGS[spelling][1]
    net = smooth_net(function)
    seen = []
    net.last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    quantization = calibrated(net, x, target=target)
    net.specs = quantization.plan.activations
    with torch.no_grad():
        net(x)
        expected, grid = reference(net, quantization, function, x)
    found = (seen[-1] / grid.scale).round().double()
    # A tie may fall the other way: sums are scaled in float32.
    assert (found - expected).abs().max() <= 1
    assert (found == expected).double().mean() > 0.999


@pytest.mark.parametrize('target', FUSING)
def test_ranges_are_those_of_the_end(x, target):
    net = smooth_net(F.silu)
    ends = []
    net.last.register_forward_pre_hook(lambda module, args: ends.append(args[0]))
    quantization = calibrated(net, x, target=target, observer='minmax')
    activations = quantization.activations
    index = activations.index['/silu#1']
    assert activations.high[index] == ends[1].max()
    assert activations.low[index] == ends[1].min()


@pytest.mark.parametrize('target', FUSING)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_training_has_no_rounding_in_between(x, target, spelling):
    # All values of the functions are on one grid, their operands on none.
    net = smooth_net(SPELLINGS[spelling][1])
    quantization = calibrated(net, x, 'train', target=target)
    seen = {}
    net.depth.register_forward_hook(
        lambda module, args, out: seen.update(given=args[0].clone(), out=out.clone())
    )
    net(x).sum().backward()
    grid = quantization.activations.host_grid(quantization.plan.activations[1].name)
    steps = seen['given'] / grid.scale
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert seen['out'].unique().numel() > 10 * grid.levels
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('target', FUSING)
@pytest.mark.parametrize('learned', [True, False])
def test_training_with_live_normalization(x, target, learned):
    net = smooth_net(lambda x: x * torch.sigmoid(x)).train()
    plan = make_plan(net, x, target=target, learned_scale=learned)
    quantization = quantize_model(net, plan)
    quantization.set_phase('train')
    optimizer = torch.optim.SGD([*net.parameters()], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    assert not quantization.activations.missing()


@pytest.mark.parametrize('target', FUSING)
def test_test_and_training_agree(x, target):
    net = smooth_net(F.gelu)
    quantization = calibrated(net, x, 'train', target=target)
    with torch.no_grad():
        simulated = net(x)
        quantization.set_phase('test')
        tested = net(x)
    noise = (simulated - tested).square().mean()
    assert noise < 1e-4 * tested.square().mean()


def test_one_grid_loses_less_than_two(x):
    losses = {}
    with torch.no_grad():
        for target in ('onnxruntime', 'openvino'):
            net = smooth_net(F.silu)
            expected = copy.deepcopy(net)(x)
            calibrated(net, x, target=target, observer='minmax')
            losses[target] = (net(x) - expected).square().mean()
    assert losses['openvino'] < 0.8 * losses['onnxruntime']


def test_shared_activation_over_levels(x):
    def forward(net, x):
        levels = [x, F.max_pool2d(x, 2)]
        return [net.cls(net.act(net.tower(level))) for level in levels]

    torch.manual_seed(0)
    net = Forward(forward, tower=conv(), act=nn.SiLU(), cls=conv(8)).eval()
    with torch.no_grad():
        expected = net(x)
        quantization = calibrated(net, x, target='openvino')
        for found, float_result in zip(net(x), expected):
            noise = (found - float_result).square().mean()
            assert noise < 1e-3 * float_result.square().mean()
    assert quantization.plan.steps['tower#1/conv2d'].joins == 'act#1/silu'


def test_layer_with_a_computed_weight(x):
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias)

    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.last(F.silu(net.first(x))),
        first=Standardized(3, 8, 3),
        last=conv(8),
    ).eval()
    with torch.no_grad():
        expected = net(x)
        quantization = calibrated(net, x, target='openvino')
        noise = (net(x) - expected).square().mean()
    assert quantization.plan.steps['first/conv2d'].joins == '/silu'
    assert noise < 1e-3 * expected.square().mean()

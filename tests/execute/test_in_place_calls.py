"""Calls in place: through views, into ``out``, under ``inference_mode``."""

import copy

import pytest
import torch
import torch.nn.functional as F
from outputs import snr
from torch import nn
from toy_models import Forward, calibrated

from mmquant_jacinto import QuantTrainModule


def assigned(x):
    x[:, :2] = x[:, :2] * 2
    return x


def through(x, write):
    write(x)
    return x


def view_of_what_is_written(x, write):
    view = x[:, :2]
    write(x)
    return torch.cat([view, x[:, 2:]], 1)


WRITES = {
    'slice': assigned,
    'mask': lambda x: through(x, lambda x: x.__setitem__(x > 1, 0.0)),
    'fill': lambda x: through(x, lambda x: x.masked_fill_(x > 1, 0)),
    'fill a part': lambda x: through(
        x, lambda x: x[:, :2].masked_fill_(x[:, :2] > 1, 0)
    ),
    'multiply a part': lambda x: through(x, lambda x: x[:, :1].mul_(2)),
    'add to a part': lambda x: through(x, lambda x: x[:, 2:].add_(x[:, :2])),
    'clamp a part': lambda x: through(x, lambda x: x[:, :2].clamp_(0, 1)),
    'activate a part': lambda x: through(x, lambda x: F.relu(x[:, :2], inplace=True)),
    'every other element': lambda x: through(x, lambda x: x[..., ::2].neg_()),
    'another shape': lambda x: through(x, lambda x: x.view(2, -1).add_(x.view(2, -1))),
    'view of a sum': lambda x: view_of_what_is_written(x, lambda x: x.add_(1)),
    'view of an activation': lambda x: view_of_what_is_written(x, lambda x: x.relu_()),
    'keyword': lambda x: through(x, lambda x: F.relu(input=x, inplace=True)),
    'out': lambda x: torch.mul(x, x, out=torch.empty_like(x)),
    'out of another shape': lambda x: torch.add(x, x, out=torch.empty(0)),
    'shape': lambda x: x[None].squeeze_(0).transpose_(2, 3),
}


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def net_of(write):
    return Forward(
        lambda net, x: net.two(write(net.one(x))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 4, 1),
    ).eval()


@pytest.mark.parametrize('name', WRITES)
def test_what_is_written_is_read(x, name):
    net = net_of(WRITES[name])
    with torch.no_grad():
        expected = net(x)
    read = []
    net.two.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    calibrated(net, x, target='onnxruntime', observer='minmax')
    with torch.no_grad():
        out = net(x)
    assert snr(expected, out) > 25
    # What the layer reads is on a grid, though it has no tensor of its own.
    quantization = net.quantization
    step = quantization.plan.steps['two/conv2d']
    grids = [quantization.activations.host_grid(step.inputs[0])]
    levels = torch.unique(read[-1])
    if not step.entries:
        steps = levels / grids[0].scale
        assert (steps - steps.round()).abs().max() < 1e-3


@pytest.mark.parametrize('name', WRITES)
def test_inference_mode_is_as_without_gradients(x, name):
    net = net_of(WRITES[name])
    calibrated(net, x)
    with torch.no_grad():
        expected = net(x)
    with torch.inference_mode():
        assert torch.equal(net(x.clone()), expected)


@pytest.mark.parametrize('name', WRITES)
def test_training_has_the_gradients_of_the_float_model(x, name):
    if name.startswith('out'):
        pytest.skip('autograd refuses them')
    net = net_of(WRITES[name])
    quantized = copy.deepcopy(net)
    calibrated(quantized, x, 'train', bits=16, observer='minmax')
    for model in (net, quantized):
        model(x).square().mean().backward()
    for parameter, twin in zip(net.parameters(), quantized.parameters()):
        assert snr(parameter.grad, twin.grad) > 30


def test_inference_mode_is_left_with_an_interrupted_region(x):
    net = net_of(lambda x: x)
    calibrated(net, x)

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = net.two.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), torch.inference_mode():
        net(x)
    handle.remove()
    assert not torch.is_inference_mode_enabled()
    with torch.no_grad():
        net(x)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_plan_says_nothing_of_calls_that_nobody_shares(x):
    plan = calibrated(net_of(lambda x: x.add_(1)), x).plan
    assert 'is_shared' not in plan.to_json()
    plan = calibrated(net_of(WRITES['view of a sum']), x).plan
    assert [name for name, step in plan.steps.items() if step.is_shared] == ['/add']
    assert type(plan).from_json(plan.to_json()) == plan


def sums_and_means(net, x):
    a, b = net.first(x), net.second(x)
    total = F.relu(a + b)
    a += b
    pooled = F.avg_pool2d(total, 2)
    return net.first(total + a[:, :3]), pooled @ pooled.transpose(2, 3), a, b


def test_what_sums_and_means_give_is_overwritten_and_nothing_else(x):
    net = Forward(sums_and_means, first=nn.Conv2d(3, 3, 1), second=nn.Conv2d(3, 3, 1))
    results = []
    for owners in (None, set()):
        model = QuantTrainModule(copy.deepcopy(net), x, target='jacinto').train()
        behaviour = model.quantization.executor.behaviour
        assert behaviour._makes_its_own
        if owners is not None:
            behaviour._makes_its_own = owners
        for _ in range(3):
            out = model(x)
        model.zero_grad()
        sum(item.square().sum() for item in out).backward()
        results.append([*out, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *results))

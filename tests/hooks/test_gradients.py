"""Gradients of weights whose normalization is frozen."""

import numpy as np
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from toy_models import ToyNet, randomize_norms

from mmquant_jacinto import QuantTrainModule
from mmquant_jacinto.hooks.gradients import clip_gradients
from mmquant_jacinto.hooks.qat_hook import optimizers_of


def clipped(factor):
    """Parameters of a net with the gradients before, for one of some size."""
    torch.manual_seed(0)
    net = randomize_norms(ToyNet())
    model = QuantTrainModule(net, torch.randn(4, 3, 16, 16), target='onnxruntime')
    model.train()(torch.randn(4, 3, 16, 16)).square().sum().mul(factor).backward()
    # One channel is a thousandth of the others, and another one learns nothing.
    net.conv.weight.data[0] *= 1e-3
    net.conv.weight.grad[1] = 0
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    clip_gradients(list(model.quantization.layers.values()))
    return dict(net.named_parameters()), before


def test_no_gradient_outweighs_its_channel():
    parameters, before = clipped(1e6)
    for name, parameter in parameters.items():
        given, found = before[name], parameter.grad
        if name in ('stem.weight', 'conv.weight'):
            limit = parameter.detach().flatten(1).norm(dim=1)
            limit = limit * (given.flatten(1).norm(dim=1) > 0)
            np.testing.assert_allclose(found.flatten(1).norm(dim=1), limit, rtol=1e-4)
            for row, other in zip(found.flatten(1), given.flatten(1)):
                assert torch.allclose(row * other.norm(), other * row.norm(), rtol=1e-3)
        elif name in ('conv.bias',) or 'norm' in name:
            limit = parameter.detach().norm().item()
            assert found.norm().item() <= limit * 1.001
        else:
            assert torch.equal(found, given), name  # no normalization behind it


def test_small_gradients_stay_as_they_are():
    parameters, before = clipped(1e-9)
    assert all(torch.equal(p.grad, before[name]) for name, p in parameters.items())


def test_the_optimizers_of_a_wrapper():
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    wrappers = [OptimWrapper(optimizer) for optimizer in optimizers]
    assert optimizers_of(wrappers[0]) == optimizers[:1]
    several = OptimWrapperDict(a=wrappers[0], b=wrappers[1])
    assert optimizers_of(several) == optimizers

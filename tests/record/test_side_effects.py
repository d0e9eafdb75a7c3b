"""A float model stays as it was: recorded, prepared, and taken back."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from toy_models import ToyNet, calibrated, make_plan, randomize_norms

from mmquant_jacinto import (
    QuantCalibrateModule,
    QuantTrainModule,
    quantize_model,
    unquantize_model,
)

SIZE = (2, 3, 16, 16)


class MovingLoss(nn.Module):
    """What heads keep beside their weights, and change in any pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer('seen', torch.zeros(()))
        self.average = 1.0
        self.anchors = None

    def forward(self, x):
        self.seen += 1
        x, given = x.detach(), x
        self.average = 0.9 * self.average + 0.1 * float(x.mean())
        self.anchors = x + random.random() + np.random.rand()
        self.register_buffer('late', x.sum(), persistent=False)
        return given * 2


@pytest.fixture
def model():
    net = nn.Sequential(randomize_norms(ToyNet()), nn.Linear(5, 5), MovingLoss())
    # Some of it in evaluation, some frozen, some gradients there.
    net.train()
    net[0].norm.eval()
    net[0].stem.weight.requires_grad_(False)
    net(torch.randn(SIZE)).sum().backward()
    return net


def everything(model):
    """All that a pass, or a hook left behind, could have changed."""
    return dict(
        state=copy.deepcopy(model.state_dict()),
        names=[name for name, _ in model.named_modules()],
        attributes=[
            {
                name: value
                for name, value in vars(module).items()
                if isinstance(value, (bool, float, int, str, torch.Tensor))
            }
            for module in model.modules()
        ],
        buffers=[name for name, _ in model.named_buffers()],
        hooks=[
            (len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ],
        gradients={
            name: (p.requires_grad, None if p.grad is None else p.grad.clone())
            for name, p in model.named_parameters()
        },
        random=(random.getstate(), np.random.get_state()[1].tolist()),
        torch_random=torch.get_rng_state().clone(),
    )


def assert_equal(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert_equal(ours[name], value)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs):
            assert_equal(*pair)
    else:
        assert ours == theirs


def test_planning_leaves_no_trace(model):
    before = everything(model)
    make_plan(model, torch.ones(SIZE))
    assert_equal(everything(model), before)


@pytest.mark.parametrize('wrapper', [QuantTrainModule, QuantCalibrateModule])
def test_preparing_and_taking_back_leaves_no_trace(wrapper, model):
    before = everything(model)
    wrapped = wrapper(model, dummy_input=torch.ones(SIZE))
    # The user's own modules only: the number of parameters is the float model's.
    assert [name for name, _ in wrapped.module.named_parameters()] == list(
        before['gradients']
    )
    assert unquantize_model(wrapped.module) is model
    after = everything(model)
    # The wrapper is in one mode as a whole.
    for state in (after, before):
        for attributes in state['attributes']:
            attributes.pop('training')
    assert_equal(after, before)


def test_quantizing_and_taking_back_gives_the_outputs_bit_for_bit(model, images):
    model.eval()
    expected = model(images)
    before = copy.deepcopy(model.state_dict())
    calibrated(model, images)
    assert not torch.equal(model(images), expected)
    unquantize_model(model)
    assert torch.equal(model(images), expected)
    for name, value in model.state_dict().items():
        if 'seen' not in name:
            assert torch.equal(value, before[name]), name


def test_taken_back_and_quantized_again_is_as_the_first_time(model, images):
    model.eval()
    calibrated(model, images)
    expected = model(images)
    plan = model.quantization.plan
    unquantize_model(model)
    quantization = quantize_model(model, plan)
    assert not quantization.has_ranges
    unquantize_model(model)
    calibrated(model, images)
    assert torch.equal(model(images), expected)


def test_gradients_after_taking_back_are_those_of_the_float_model(model, images):
    reference = copy.deepcopy(model)
    calibrated(model, images, phase='train')
    model(images).sum().backward()
    unquantize_model(model)
    for net in (model, reference):
        net.zero_grad()
        net.train()
        torch.manual_seed(0)
        net(images).sum().backward()
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        if theirs.grad is not None:
            assert torch.equal(ours.grad, theirs.grad)

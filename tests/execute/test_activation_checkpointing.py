"""Activation checkpointing: the gradients of a run without, and its memory saved."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint
from toy_models import calibrated, randomize_norms, seeded
from toy_runner import EPOCHS, differences, make_config, state_of, train, val_scores

from mmquant_jacinto import QuantizeError, QuantTrainModule

REENTRANT = pytest.mark.parametrize('reentrant', [True, False])


class Block(nn.Module):
    """A bottleneck as mmdet writes it, with a functional op and two in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.reentrant = None  # no checkpointing
        self.reaches = []

    def _inner_forward(self, x):
        out = F.hardswish(x)
        out = self.relu(self.norm1(self.conv1(out)))
        self.reaches.append(StorageWeakRef(out.untyped_storage()))
        out = self.conv2(F.avg_pool2d(out, 3, stride=1, padding=1))
        out += x
        return out

    def forward(self, x):
        if self.reentrant is None or not x.requires_grad:
            out = self._inner_forward(x)
        else:
            out = checkpoint(self._inner_forward, x, use_reentrant=self.reentrant)
        self.relu(out)
        return out


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = Block(8)
        self.layer2 = nn.Sequential(Block(8), Block(8))

    def forward(self, x):
        return self.layer2(self.layer1(self.stem(x)))


class Head(nn.Module):
    """One tower for three levels, each of its calls checkpointed."""

    def __init__(self):
        super().__init__()
        self.tower = Block(8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        levels = [x, F.max_pool2d(x, 2), F.max_pool2d(x, 4)]
        return [self.out(self.tower(level)) for level in levels]


class Detector(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = Head()

    def forward(self, inputs, mode='tensor'):
        outs = self.head(self.backbone(inputs))
        return sum(out.sigmoid().square().sum() for out in outs)


def make_model(frozen=0):
    """A prepared model; its normalizations freeze at the epoch ``frozen``."""
    torch.manual_seed(0)
    model = QuantTrainModule(
        randomize_norms(Detector()),
        dummy_input=torch.randn(2, 3, 16, 16),
        total_epochs=4,
        freeze=dict(bn=frozen, ranges=3),
    )
    return model.train()


def set_checkpointing(model, reentrant):
    for module in model.modules():
        if isinstance(module, Block):
            module.reentrant = reentrant
    return model


def run(model, steps=4):
    """Losses and gradients of some steps, and the state that they lead to."""
    generator = seeded(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses, gradients = [], []
    for _ in range(steps):
        images = torch.randn(2, 3, 16, 16, generator=generator)
        optimizer.zero_grad()
        loss = model(images)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        optimizer.step()
    return losses, gradients, copy.deepcopy(model.module.state_dict())


def assert_same_training(model, reference):
    losses, gradients, state = run(model)
    expected_losses, expected_gradients, expected_state = run(reference)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    for ours, theirs in zip(gradients, expected_gradients):
        for name, gradient in theirs.items():
            # Where a weight is used three times, the order of the sum differs.
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5)
    # Ranges, how often they were measured, and statistics of normalizations.
    for name, value in expected_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    return gradients, expected_gradients


@REENTRANT
@pytest.mark.parametrize('frozen', [0, 10], ids=['frozen', 'live'])
def test_gradients_are_those_without_checkpointing(reentrant, frozen):
    model = set_checkpointing(make_model(frozen), reentrant)
    ours, theirs = assert_same_training(model, make_model(frozen))
    first = 'module.backbone.layer1.conv1.weight'
    # The second step is quantized, and not by what its own batch measured.
    assert not torch.equal(ours[0][first], ours[1][first])
    torch.testing.assert_close(ours[1][first], theirs[1][first], rtol=1e-5, atol=1e-7)


@REENTRANT
def test_replay_happens_on_the_grids_of_its_forward_pass(reentrant):
    # Two passes before a backward one: the ranges have moved twice by then.
    results = []
    for setting in (reentrant, None):
        model = set_checkpointing(make_model(), setting)
        generator = seeded(1)
        images = torch.randn(3, 2, 3, 16, 16, generator=generator)
        model(images[0])
        loss = model(2 * images[1]) + model(5 * images[2])
        loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in results[1].items():
        torch.testing.assert_close(results[0][name], gradient, rtol=1e-4, atol=1e-5)


@REENTRANT
def test_memory_is_saved(reentrant):
    alive = {}
    for setting in (None, reentrant):
        model = set_checkpointing(make_model(), setting)
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        for _ in range(2):  # the second is quantized
            for block in blocks:
                block.reaches.clear()
            loss = model(torch.randn(2, 3, 16, 16))
            reaches = [reach for block in blocks for reach in block.reaches]
            alive[setting] = [not reach.expired() for reach in reaches]
            loss.backward()
    # Three blocks of the backbone, and the tower at three levels.
    assert len(alive[None]) == len(alive[reentrant]) == 6
    assert all(alive[None])
    assert not any(alive[reentrant])


@pytest.mark.parametrize(
    'names', ['backbone', ['backbone.layer1', 'backbone.layer2'], ['head.tower']]
)
def test_mmengine_checkpoints_whole_modules(names):
    # The forward method is replaced; the module's own hooks do not run again.
    model = make_model()
    turn_on_activation_checkpointing(model.module, names)
    inputs = torch.randn(2, 3, 16, 16, requires_grad=True)
    reference = make_model()
    for part in (model, reference):
        for _ in range(2):
            part.zero_grad()
            part(inputs).backward()
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@REENTRANT
def test_checkpoint_around_a_region_and_within_another(reentrant):
    def enclosed(self, inputs, mode='tensor'):
        features = checkpoint(self.backbone, inputs, use_reentrant=reentrant)
        return sum(out.sigmoid().square().sum() for out in self.head(features))

    outer = set_checkpointing(make_model(), reentrant)
    outer.module.forward = enclosed.__get__(outer.module)
    inputs = torch.randn(2, 3, 16, 16, requires_grad=True)
    reference = make_model()
    for part in (outer, reference):
        for _ in range(2):
            part.zero_grad()
            part(inputs).backward()
    for ours, theirs in zip(outer.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_evaluation_is_what_it_is_without(images):
    model = randomize_norms(Detector()).eval()
    calibrated(model, images)
    with torch.no_grad():
        expected = model(images)
        turn_on_activation_checkpointing(model, ['backbone.layer1', 'head.tower'])
        assert torch.equal(model(images), expected)


class OwnCheckpoint(torch.autograd.Function):
    """Runs a module again in its own way, as fairscale's wrapper does."""

    @staticmethod
    def forward(ctx, module, x):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module.forward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.module.forward(x).backward(grad)
        return None, x.grad


def test_other_ways_to_checkpoint_are_refused():
    model = make_model()
    layer1 = model.module.backbone.layer1
    model.module.backbone.forward = lambda x: model.module.backbone.layer2(
        OwnCheckpoint.apply(layer1, model.module.backbone.stem(x))
    )
    loss = model(torch.randn(2, 3, 16, 16))
    with pytest.raises(QuantizeError, match=r'backbone\.layer1\.conv1 runs again'):
        loss.backward()


def test_float_models_are_checkpointed_as_ever():
    model = set_checkpointing(Detector(), True)
    reference = copy.deepcopy(set_checkpointing(model, None))
    set_checkpointing(model, True)
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    model(images).backward()
    reference(images).backward()
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_runner_trains_bit_for_bit_as_without(tmp_path):
    quantize = dict(mode='qat', bits=8)
    modules = ['backbone.conv', 'backbone.norm', 'head']
    train(
        make_config(tmp_path / 'replayed', quantize, activation_checkpointing=modules)
    )
    train(make_config(tmp_path / 'plain', quantize))
    ours, theirs = (
        state_of(tmp_path / name / f'epoch_{EPOCHS}.pth')
        for name in ('replayed', 'plain')
    )
    assert not differences(ours, theirs)
    assert val_scores(tmp_path / 'replayed') == val_scores(tmp_path / 'plain')

"""The float model as the teacher: its loss, its gradient, and what it leaves alone."""

import copy

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from toy_models import (
    Forward,
    ToyBackbone,
    ToyHead,
    float_state,
    losses_of,
    randomize_norms,
)

from mmquant_jacinto import QuantCalibrateModule, QuantizeError, QuantTrainModule
from mmquant_jacinto.methods.output_error import count_images, is_of_images
from mmquant_jacinto.methods.self_distillation import (
    ERROR,
    LOSS,
    balance,
    last_weights,
    relative_error,
    total,
)
from mmquant_jacinto.registry import OBSERVERS

OPTIONS = dict(target='onnxruntime', distill=dict(weight=3.0))


class Counted(nn.Module):
    """A part of a loss that counts how often it ran, as a running average does."""

    def __init__(self):
        super().__init__()
        self.register_buffer('runs', torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        return x.square().mean()


class Detector(BaseModel):
    """Gives losses in training, as OpenMMLab's models do."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.backbone = ToyBackbone()
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = ToyHead()
        self.criterion = Counted()

    def features(self, inputs):
        first, second = self.backbone(inputs)
        return [self.dropout(self.norm(first)), second]

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outputs = self.head(self.features(inputs))
        if mode != 'loss':
            return outputs
        data_samples.append('seen')
        return dict(loss_head=sum(self.criterion(x) for x in outputs))


def images(seed=1, count=4):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def taught(net=None, x=None, **quantize):
    """A model in training, its ranges measured, and the float model it was."""
    torch.manual_seed(0)
    net = randomize_norms(Detector() if net is None else net)
    x = images() if x is None else x
    model = QuantTrainModule(net, x, **{**OPTIONS, **quantize})
    teacher = copy.deepcopy(net)
    teacher.quantization.detach()
    model.teach(float_state(net_without_quantizers(net)))
    model.train()
    losses_of(model, x)  # ranges are known behind it
    return model, teacher.eval()


def net_without_quantizers(net):
    twin = copy.deepcopy(net)
    twin.quantization.detach()
    del twin.quantization
    return twin


def test_relative_error_is_the_mean_square_in_units_of_the_variance():
    x, expected = torch.randn(2, 3, 4), 5 + torch.randn(2, 3, 4)
    a, b = x.double().numpy(), expected.double().numpy()
    found = relative_error(x, expected).item()
    assert found == pytest.approx(((a - b) ** 2).mean() / b.var(), rel=1e-5)
    # A unit or a constant of both changes nothing.
    assert relative_error(7 * x - 3, 7 * expected - 3).item() == pytest.approx(
        found, rel=1e-4
    )


def test_an_output_that_is_the_same_everywhere_outweighs_nothing():
    x = torch.full((2, 3), 1.001)
    assert relative_error(x, torch.ones(2, 3)) < 2


@pytest.mark.parametrize('broken', [float('nan'), float('inf')])
def test_what_the_teacher_breaks_does_not_count(broken):
    x = torch.randn(2, 8, requires_grad=True)
    expected = torch.randn(2, 8)
    expected[0, 0] = broken
    loss = relative_error(x, expected)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    assert x.grad[0, 0] == 0 and (x.grad != 0).sum() == 15


def test_the_loss_is_that_of_the_head_outputs_and_the_rest_is_as_before():
    model, teacher = taught()
    x = images(2)
    kept = []
    handle = model.module.head.register_forward_hook(lambda *call: kept.append(call[2]))
    losses = losses_of(model, x)
    handle.remove()
    outputs = kept[-1]  # the student's; the teacher's pass came before
    with torch.no_grad():
        expected = teacher(x)
    errors = [
        ((a.detach() - b) ** 2).double().mean() / b.double().var(unbiased=False)
        for a, b in zip(outputs, expected)
    ]
    np.testing.assert_allclose(losses[ERROR].item(), np.mean(errors), rtol=1e-4)
    assert not losses[ERROR].requires_grad
    own = sum(a.square().mean() for a in outputs)
    np.testing.assert_allclose(losses['loss_head'].item(), own.item(), rtol=1e-6)


@pytest.mark.parametrize('unit', [1.0, 1e-3])
def test_it_pulls_at_the_last_weights_as_the_labels_do(unit):
    model, _ = taught()
    weights = last_weights(model.quantization)
    assert [id(weight) for weight in weights] == [id(model.module.head.cls.weight)]
    model.module.criterion.register_forward_hook(lambda *call: unit * call[2])
    losses = losses_of(model, images(2))
    norms = [
        torch.autograd.grad(losses[name], weights, retain_graph=True)[0].norm()
        for name in (LOSS, 'loss_head')
    ]
    np.testing.assert_allclose(norms[0].item(), 3 * norms[1].item(), rtol=1e-4)


def test_labels_that_pull_at_nothing_leave_the_error_as_it_is():
    weight = torch.ones(2, requires_grad=True)
    error = weight.square().sum()
    assert balance(None, error, [weight]) == 1
    assert balance(torch.ones((), requires_grad=True), error, [weight]) == 1
    assert balance(weight.sum(), error, []) == 1
    # Of a sum the gradient is 1 at each of two, of the squares 2.
    assert balance(weight.sum(), error, [weight]) == 0.5
    assert balance(weight.sum(), 0 * error, [weight]) == 1
    assert balance(weight.sum() * torch.inf, error, [weight]) == 1


def test_what_counts_as_a_loss():
    x = torch.ones(2, requires_grad=True)
    losses = dict(loss_a=x, loss_b=[2 * x, 3 * x], accuracy=x, loss_c=torch.ones(()))
    assert total(losses) == 6
    assert total(dict(accuracy=x)) is None


def test_its_gradient_alone_brings_the_outputs_nearer():
    bits = dict(weight=4, activation=8)
    model, teacher = taught(bits=bits, edge_bits=4, learned_scale=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for step in range(60):
        loss = losses_of(model, images(step % 4))[LOSS]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert np.mean(history[-8:]) < 0.7 * np.mean(history[:8])
    for name, value in float_state(teacher).items():
        if name in model.teacher.weights:
            assert torch.equal(model.teacher.weights[name], value), name


def test_the_teacher_leaves_no_trace_and_stops_at_its_last_output():
    model, _ = taught()
    module = model.module
    norm = copy.deepcopy(module.norm.state_dict())
    runs, samples = module.criterion.runs.item(), []
    calls = []
    module.head.register_forward_hook(lambda *call: calls.append('head'))
    model(images(2), samples, mode='loss')
    # Two levels: once each by the student alone, which alone gets to the end of the
    # head, and to the labels.
    assert module.criterion.runs.item() == runs + 2
    assert samples == ['seen']
    assert calls == ['head']
    assert module.norm.num_batches_tracked == norm['num_batches_tracked'] + 1


def test_the_first_pass_leaves_no_trace_either():
    torch.manual_seed(0)
    net = randomize_norms(Detector())
    model = QuantTrainModule(net, images(), **OPTIONS)
    model.teach(float_state(net_without_quantizers(net)))
    model.train()
    losses_of(model, images())
    assert net.criterion.runs.item() == 2
    assert net.norm.num_batches_tracked == 1


def test_dropout_is_the_students_and_draws_the_same_numbers():
    found = []
    for teach in (True, False):
        torch.manual_seed(0)
        net = randomize_norms(Detector(dropout=0.5))
        options = OPTIONS if teach else dict(OPTIONS, distill=False)
        model = QuantTrainModule(net, images(), **options)
        if teach:
            model.teach(float_state(net_without_quantizers(net)))
        model.train()
        torch.manual_seed(5)
        found.append([losses_of(model, images(i))['loss_head'] for i in range(3)])
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))
    assert len(set(torch.stack(found[0]).tolist())) == 3


FEW = dict(bits=dict(weight=4, activation=6), edge_bits=4, learned_scale=False)


@pytest.mark.parametrize(
    'quantize',
    [
        dict(target='onnxruntime', bits=8),
        dict(target='onnxruntime', bits=dict(weight=8, activation=16)),
        dict(target='onnxruntime', bits=8, observer='moving_average'),
        dict(target='tensorrt', bits=8),
        dict(target='jacinto', bits=8, weight_observer='minmax'),
        dict(target='jacinto', bits=16, weight_observer='minmax'),
        dict(target='jacinto', weight_observer='minmax', **FEW),
    ],
)
def test_a_training_starts_where_a_calibration_ends(quantize):
    net = randomize_norms(Detector())
    x, weights = images(), float_state(net)
    settings = dict(quantize)
    # A training has a method for few bits that a calibration does not.
    if settings.pop('learned_scale', None) is not None:
        settings['finetune'] = False
    twin = copy.deepcopy(net)
    # Nor do weights that a training moves need a correction.
    calibration = dict(weights=False)
    calibrated = QuantCalibrateModule(twin, x, calibration=calibration, **settings)
    calibrated.train()
    calibrated(x)
    calibrated.quantization.activations.settle()
    for corrected in ('sequential', False):
        twin = copy.deepcopy(net)
        calibration = dict(bias_correction=corrected)
        model = QuantTrainModule(twin, x, calibration=calibration, **quantize)
        model.teach(weights)
        model.measure_start([dict(inputs=x)])
        model.set_epoch(0, 4)
        assert model.ranges_frozen and model.bn_frozen
        start, end = model.quantization, calibrated.quantization
        for name in ('low', 'high'):
            found, expected = (getattr(q.activations, name) for q in (start, end))
            assert torch.equal(found, expected)
        # What follows the training is what always did.
        own = model.plan.config['observer']
        assert type(start.activations.observer) is OBSERVERS.get(own)
        corrections = end.bias_correction if corrected else torch.zeros(18)
        assert corrections.any() or not corrected
        torch.testing.assert_close(start.bias_correction, corrections)
        assert (start.weight_correction == 1).all()


@pytest.mark.parametrize('ranges', [False, 1])
def test_ranges_that_will_follow_the_training_start_as_they_go_on(ranges):
    x = torch.cat([images(), 3 * images()])
    found = []
    for freeze in (dict(ranges=ranges), dict(ranges=ranges, bn=False)):
        net = randomize_norms(Detector())
        weights = float_state(net)
        model = QuantTrainModule(net, x, target='onnxruntime', freeze=freeze)
        model.teach(weights)
        model.measure_start([dict(inputs=part) for part in x.chunk(2)])
        model.set_epoch(0, 4)
        assert not model.ranges_frozen
        found.append(model.quantization.activations.high.clone())
        corrected = bool(model.quantization.bias_correction.any())
        # Statistics that move have no use for a correction.
        assert corrected == ('bn' not in freeze)
    # Averages of both batches, not the extremes.
    kept = randomize_norms(Detector())
    weights = float_state(kept)
    model = QuantTrainModule(kept, x, target='onnxruntime')
    model.teach(weights)
    model.measure_start([dict(inputs=part) for part in x.chunk(2)])
    assert (model.quantization.activations.high > found[0]).any()


def test_neither_a_copy_nor_an_evaluation_is_taught():
    model, _ = taught()
    twin = copy.deepcopy(model.module)
    assert LOSS not in twin(images(), [], mode='loss')
    assert not any(hasattr(hook, 'weights') for hook in twin._forward_hooks.values())
    model.eval()
    assert LOSS not in model(images(), [], mode='loss')
    model.train()
    with torch.no_grad():
        assert LOSS not in losses_of(model, images())
    assert LOSS in losses_of(model, images())


def test_normalization_is_frozen_from_the_start_unless_asked_otherwise():
    for freeze, expected in ((None, True), (False, False), (3, False)):
        net = Detector()
        model = QuantTrainModule(
            net, images(), total_epochs=8, freeze=dict(bn=freeze), **OPTIONS
        )
        model.teach(float_state(net_without_quantizers(net)))
        model.set_epoch(0, 8)
        assert model.bn_frozen is expected


class Proposing(BaseModel):
    """Its layer sees boxes, sixteen of each image, in one row."""

    def __init__(self):
        super().__init__()
        self.boxes = nn.Linear(3, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        boxes = self.boxes(inputs.mean(3).transpose(1, 2).flatten(0, 1))
        if mode != 'loss':
            return boxes
        return dict(loss_boxes=boxes.square().mean())


def test_boxes_that_a_model_proposes_are_not_compared():
    net = randomize_norms(Proposing())
    model = QuantTrainModule(net, images(), **OPTIONS)
    model.teach(float_state(net_without_quantizers(net)))
    model.train()
    with pytest.raises(QuantizeError, match=r'quantize\.distill has nothing to comp'):
        losses_of(model, images())


def test_without_being_asked_for_it_teaches_where_it_can():
    net = randomize_norms(Proposing())
    model = QuantTrainModule(net, images(), target='onnxruntime')
    model.teach(float_state(net_without_quantizers(net)))
    model.train()
    for _ in range(2):
        assert list(losses_of(model, images())) == ['loss_boxes']


def test_what_is_of_images():
    assert is_of_images(torch.zeros(4, 2, 5, 5), 4)
    assert is_of_images(torch.zeros(6, 4, 100, 3), 4)
    assert is_of_images(torch.zeros(4, 10), 4)
    assert not is_of_images(torch.zeros(512, 4), 4)
    assert is_of_images(torch.zeros(512, 4), None)
    assert count_images((), dict(inputs=torch.zeros(3, 3, 8, 8))) == 3
    assert count_images(([1, 2],), {}) == 2
    assert count_images((), dict(data_samples=None)) is None


def test_a_model_without_losses_is_refused():
    net = Forward(lambda net, x: net.conv(x), conv=nn.Conv2d(3, 4, 1))
    model = QuantTrainModule(net, images(), **OPTIONS).train()
    with pytest.raises(QuantizeError, match='has no teacher; call teach'):
        model(images())

"""Fine-tuning for the float model's outputs: what it trains, and what it leaves."""

import copy

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from toy_models import Forward, ToyNet, make_plan, randomize_norms
from toy_runner import log_of, make_config, train

from mmquant_jacinto import (
    QuantCalibrateModule,
    QuantizeConfig,
    QuantizeError,
    QuantTestModule,
)
from mmquant_jacinto.methods import network_outputs as outputs
from mmquant_jacinto.methods import output_error
from mmquant_jacinto.methods.output_error import output_loss, paired

BITS = dict(weight=4, activation=4, sum=4, output=8)
OPTIONS = dict(iterations=60, lr=0.05, augment=False)


def images(count=8):
    torch.manual_seed(1)
    return [torch.randn(4, 3, 16, 16) for _ in range(count)]


def calibrate(net, batches, options=None, **quantize):
    few = dict(target='onnxruntime', bits=BITS, edge_bits=4)
    quantize = {**few, **quantize}
    model = QuantCalibrateModule(
        net.eval(), batches[0], finetune=options or OPTIONS, **quantize
    ).train()
    for batch in batches:
        model(batch)
    return model


def toy(seed=0):
    torch.manual_seed(seed)
    return randomize_norms(ToyNet()).eval()


def noise_to_signal(model, net, batches):
    """Of the integer model, against the float one."""
    model.eval()
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in batches])
        found = torch.cat([model(batch) for batch in batches])
    model.train()
    return ((found - expected).square().sum() / expected.square().sum()).item()


def test_loss_is_the_mean_of_relative_squared_errors():
    torch.manual_seed(0)
    shapes = dict(first=(2, 3), second=(4, 1, 2))
    ours = [(name, torch.randn(s, requires_grad=True)) for name, s in shapes.items()]
    theirs = [(name, torch.randn(s, requires_grad=True)) for name, s in shapes.items()]
    loss = output_loss(ours, theirs, dict.fromkeys(shapes, torch.tensor(0.0)))
    arrays = [
        (x.detach().double().numpy(), y.detach().double().numpy())
        for (_, x), (_, y) in zip(ours, theirs)
    ]
    expected = np.mean([((x - y) ** 2).sum() / (y**2).sum() for x, y in arrays])
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)
    loss.backward()
    for (_, tensor), (x, y) in zip(ours, arrays):
        gradient = 2 * (x - y) / (y**2).sum() / len(arrays)
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-4)
    assert all(tensor.grad is None for _, tensor in theirs)


def test_outputs_are_paired_by_quantizer_and_order():
    ours = [('a', torch.ones(2)), ('b', torch.ones(5)), ('a', 2 * torch.ones(2))]
    theirs = [
        ('b', torch.zeros(4)),
        ('a', 3 * torch.ones(2)),
        ('a', 4 * torch.ones(2)),
        ('c', torch.zeros(2)),
    ]
    found = [(name, x[0].item(), y[0].item()) for name, x, y in paired(ours, theirs)]
    assert found == [('a', 1, 3), ('a', 2, 4)]
    assert output_loss(ours[1:2], theirs, {}) is None


@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime'])
def test_outputs_come_nearer_and_the_checkpoint_tests_the_same(target):
    batches, float_net = images(7), toy(1)
    states = []
    for _ in range(2):
        net = copy.deepcopy(float_net)
        model = calibrate(net, batches, target=target)
        before = noise_to_signal(model, float_net, batches)
        losses = model.finetune(batches)
        assert len(losses) == OPTIONS['iterations']
        # A grid for all channels, of a power of two, leaves less to gain.
        gain = dict(jacinto=0.8, onnxruntime=0.5)[target]
        assert noise_to_signal(model, float_net, batches) < gain * before
        states.append(copy.deepcopy(net.state_dict()))
    # Deterministic.
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    quantization = model.quantization
    assert not torch.equal(net.stem.weight, float_net.stem.weight)
    assert quantization.bias_correction.any()
    assert not quantization.bias_correction.requires_grad
    assert all(p.grad is None for p in net.parameters())
    for scales in (quantization.learned, quantization.activations.learned):
        assert scales.log2_scale.any()
    model.eval()
    test = QuantTestModule(ToyNet()).eval()
    test.module.load_state_dict(net.state_dict())
    assert torch.equal(test(batches[0]), model(batches[0]))


@pytest.mark.parametrize('lr, kept', [(0.02, True), (2.0, False)])
def test_what_does_not_help_images_that_it_did_not_see_is_taken_back(lr, kept):
    batches, net = images(8), toy()
    options = dict(iterations=20, lr=lr, augment=False)
    model = calibrate(net, batches, options, target='onnxruntime')
    state = model.quantization
    trained = [*net.parameters(), state.bias_correction]
    before = copy.deepcopy(trained)
    error = noise_to_signal(model, toy(), batches[:1])
    assert len(model.finetune(batches)) == 20
    trained = [net.get_parameter(name) for name, _ in toy().named_parameters()]
    trained.append(state.bias_correction)
    assert all(map(torch.equal, before, trained)) != kept
    found = noise_to_signal(model, toy(), batches[:1])
    assert found < error if kept else found == error


def test_frozen_weights_are_trained_and_frozen_again():
    net, batches = toy(), images(2)
    net.stem.weight.requires_grad_(False)
    model = calibrate(net, batches, dict(iterations=2))
    before = net.stem.weight.clone()
    model.finetune(batches)
    assert not torch.equal(net.stem.weight, before)
    assert not net.stem.weight.requires_grad
    assert net.conv.weight.requires_grad


def test_the_teacher_has_the_weights_from_before_the_calibration(monkeypatch):
    float_net, batches = toy(), images(3)
    net = copy.deepcopy(float_net)
    options = dict(iterations=5, augment=False)
    model = calibrate(net, batches, options, rounding='coordinate_descent')
    model.round_weights(batches)
    assert not torch.equal(net.stem.weight, float_net.stem.weight)
    references = []

    def note(outputs, reference, least):
        references.append(dict(reference)['fc/linear'])
        return output_loss(outputs, reference, least)

    monkeypatch.setattr(output_error, 'output_loss', note)
    model.finetune(batches)
    # Of outputs and of features, each time.
    assert len(references) == 10
    with torch.no_grad():
        for index, reference in enumerate(references):
            assert torch.equal(reference, float_net(batches[index // 2 % 3]))


@pytest.mark.parametrize('held', [0, 2**26])
def test_outputs_of_the_teacher_are_held_where_there_is_room(held, monkeypatch):
    monkeypatch.setattr(output_error, 'MAX_HELD', held)
    runs = []
    begin = outputs.FloatOutputs.begin
    monkeypatch.setattr(
        outputs.FloatOutputs, 'begin', lambda self: (runs.append(1), begin(self))
    )
    batches = images(2)
    options = dict(iterations=6, augment=False)
    calibrate(toy(), batches, options).finetune(batches)
    assert len(runs) == (2 if held else 6)


def test_what_layers_read_is_taught_too_and_counts_less_and_less(monkeypatch):
    counted = []
    loss = output_error.OutputError.loss

    def note(self, batch, reference):
        names = self.student.outputs.features
        outputs = {name for name, _ in reference.outputs} - names
        counted.append(
            (self.features, outputs, names & {n for n, _ in reference.outputs})
        )
        return loss(self, batch, reference)

    monkeypatch.setattr(output_error.OutputError, 'loss', note)
    batches = images(2)
    model = calibrate(toy(), batches, dict(iterations=4, augment=False))
    model.finetune(batches)
    shares, outputs, features = zip(*counted)
    assert shares == pytest.approx([0.9375, 0.75, 0.4375, 0.0])
    assert set.union(*outputs) == {'fc/linear'}
    assert all({'stem/conv2d', 'conv/conv2d'} <= names for names in features)
    assert not any('/input' in names for names in features)


def test_features_are_in_the_gradients_of_the_loss_alone():
    batches = images(2)
    found = []
    for share in (0.0, 1.0):
        model = calibrate(toy(), batches)
        error = output_error.OutputError(
            model.quantization, model._run_with, features=1.0
        )
        error.features = share
        net = model.module
        loss = error.loss(batches[0], error.reference(batches[0]))
        (grad,) = torch.autograd.grad(loss, [net.stem.weight])
        found.append((loss.item(), grad))
    assert found[0][0] == found[1][0]
    assert not torch.allclose(found[0][1], found[1][1])


class Decoding(BaseModel):
    """A model of MMEngine that changes its network's outputs in place."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs, mode='tensor'):
        out = self.net(inputs)
        with torch.no_grad():
            return out.mul_(2)


def attention():
    return Forward(
        lambda net, x: net.attention(x, x, x)[0],
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    )


def test_rows_of_a_packed_weight_are_trained_together():
    torch.manual_seed(0)
    net, batches = attention(), [torch.randn(2, 5, 8) for _ in range(4)]
    reference = copy.deepcopy(net).eval()
    model = calibrate(net, batches, dict(iterations=20, lr=0.02))
    before = noise_to_signal(model, reference, batches)
    model.finetune(batches)
    assert noise_to_signal(model, reference, batches) < before


def test_decoding_takes_no_part():
    tensors = images(2)
    batches = [dict(inputs=x) for x in tensors]
    net = toy()
    reference = copy.deepcopy(net)
    model = QuantCalibrateModule(
        Decoding(net).eval(),
        batches[0],
        target='onnxruntime',
        bits=BITS,
        finetune=dict(iterations=40, lr=0.05, augment=False),
    ).train()
    for batch in batches:
        model.calibrate_step(batch, None, 0.0)
    losses = model.finetune(batches)
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        found, expected = model.eval()(**batches[0]), 2 * reference(tensors[0])
    assert (found - expected).square().sum() < 0.1 * expected.square().sum()


def test_an_image_that_gives_nan_is_left_out():
    batches = images(3)
    model = calibrate(toy(), batches, dict(iterations=6))
    losses = model.finetune([batches[0], torch.full_like(batches[1], torch.nan)])
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    state = model.module.state_dict()
    assert all(x.isfinite().all() for x in state.values())
    with pytest.raises(QuantizeError, match='NaN or infinity on every calibration'):
        model.finetune([torch.full_like(batches[1], torch.nan)])


def test_an_output_that_is_nearly_zero_on_a_batch_does_not_outweigh_the_others():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: (net.first(x), net.second(x).relu() - 0.0),
        first=nn.Conv2d(3, 4, 3),
        second=nn.Conv2d(3, 4, 3),
    )
    batches = images(4)
    # What only one of them reaches.
    with torch.no_grad():
        net.second.bias -= net.second(torch.cat(batches[1:])).amax((0, 2, 3))
        batches[0][0, :, :8] *= 3
    model = calibrate(net, batches, dict(iterations=12), bits=4)
    assert max(model.finetune(batches)) < 10


def test_what_a_float_layer_reads_is_brought_together():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.head(net.second(net.first(x).relu()).relu().mean((2, 3))),
        first=nn.Conv2d(3, 8, 3),
        second=nn.Conv2d(8, 8, 3),
        head=nn.Linear(8, 5),
    )
    batches, reference = images(4), copy.deepcopy(net)
    model = calibrate(net, batches, overrides={'head': False})
    before = noise_to_signal(model, reference, batches)
    model.finetune(batches)
    assert noise_to_signal(model, reference, batches) < 0.9 * before


def test_wide_sums_are_no_outputs_where_another_layer_is_in_float():
    net = Forward(
        lambda net, x: net.head(net.second(y := net.first(x)) + y),
        first=nn.Conv2d(3, 4, 1),
        second=nn.Conv2d(4, 4, 1),
        head=nn.Conv2d(4, 2, 1),
    )
    plan = make_plan(
        net,
        torch.randn(1, 3, 8, 8),
        mode='ptq',
        target='onnxruntime',
        bits=dict(weight=4, activation=4, sum=8),
        overrides={'first': False},
    )
    assert outputs.output_quantizers(plan) == {'head/conv2d'}


def test_a_loss_that_is_not_finite_stops_with_an_error():
    batches = images(2)
    model = calibrate(toy(), batches, dict(iterations=5, lr=1e6))
    with pytest.raises(QuantizeError, match='use a lower .*quantize.finetune.lr'):
        model.finetune(batches)


def test_nothing_to_compare_or_to_train_on_is_an_error(monkeypatch):
    batches = images(2)
    model = calibrate(toy(), batches)
    with pytest.raises(QuantizeError, match='calibrate on some batches before'):
        model.finetune([])
    monkeypatch.setattr(outputs, 'output_quantizers', lambda plan: set())
    with pytest.raises(QuantizeError, match='quantize.finetune has nothing to compare'):
        model.finetune(batches)
    plain = QuantCalibrateModule(toy(), batches[0], bits=8).train()
    plain(batches[0])
    with pytest.raises(QuantizeError, match='set finetune=True'):
        plain.finetune(batches)


def test_scales_are_learned_at_the_end_of_a_calibration():
    batches = images(2)
    # Until then grids follow the weights, which are corrected.
    model = calibrate(toy(), batches, dict(iterations=1))
    assert not model.plan.is_learned
    model.finetune(batches)
    assert model.plan.is_learned


def test_runner_fine_tunes_and_says_so(tmp_path):
    train(make_config(tmp_path / 'float'))
    quantize = dict(
        mode='ptq', target='onnxruntime', bits=4, finetune=dict(iterations=25)
    )
    cfg = make_config(
        tmp_path / 'ptq', quantize, load_from=str(tmp_path / 'float' / 'epoch_6.pth')
    )
    runner = train(cfg)
    log = log_of(tmp_path / 'ptq')
    assert log.count('Fine-tuning: iteration ') == 9
    assert 'Fine-tuning: iteration 25 of 25, loss ' in log
    stored = torch.load(tmp_path / 'ptq' / 'epoch_1.pth', weights_only=False)
    key = 'quantization.activations.learned.log2_scale'
    assert stored['state_dict'][key].any()
    found = runner.model.module.state_dict()[key]
    assert torch.equal(stored['state_dict'][key].cpu(), found.cpu())


@pytest.mark.parametrize(
    'quantize, message',
    [
        (dict(finetune=True), "quantize.finetune is for a run that calibrates.*'qat'"),
        (dict(mode='ptq', finetune=3), 'quantize.finetune=3 is not a dict'),
        (
            dict(mode='ptq', finetune=dict(iterations=0)),
            'quantize.finetune.iterations=0 is not a count',
        ),
        (dict(mode='ptq', finetune=dict(lr=-1)), 'quantize.finetune.lr=-1 is not a'),
        (
            dict(mode='ptq', finetune=dict(lr_mult='1')),
            "quantize.finetune.lr_mult='1' is not a positive",
        ),
        (
            dict(mode='ptq', finetune=dict(epochs=1)),
            'quantize.finetune.epochs is not a known key',
        ),
        (
            dict(mode='ptq', finetune=True, learned_scale=True),
            'quantize.learned_scale is for a run that trains',
        ),
    ],
)
def test_bad_values_are_refused(quantize, message):
    with pytest.raises(QuantizeError, match=message):
        QuantizeConfig.parse(quantize)

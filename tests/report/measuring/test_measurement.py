"""What a report measures of layers, and that it leaves the model as it was."""

import pytest
import torch
from torch import nn
from toy_models import Forward, ToyDetector, ToyNet, calibrated, randomize_norms
from toy_runner import differences

from mmquant_jacinto.report import Measurement, describe
from mmquant_jacinto.report.measuring.measurement import output_steps
from mmquant_jacinto.report.measuring.signals import (
    Differences,
    FloatSignals,
    QuantizedSignals,
    decibels,
)

ONNXRUNTIME = dict(mode='ptq', target='onnxruntime')


def runner_of(model):
    def run(behaviour, batch):
        model.quantization.executor.behaviour = behaviour
        return model(batch)

    return run


def measure(model, x, limit=None, **quantize):
    quantization = calibrated(model, x, **{**ONNXRUNTIME, **quantize})
    report = describe(quantization, 'toy', 'report')
    Measurement(quantization, runner_of(model), limit).fill(report, [x[:1], x[1:]])
    return report


@pytest.fixture
def report(toy_net, images):
    return measure(toy_net, images)


def row_of(report, ending):
    return next(layer for layer in report.layers if layer.name.endswith(ending))


def test_the_first_layer_inherits_nothing_but_the_input(report):
    stem = row_of(report, 'stem/conv2d')
    assert stem.snr_inherited > stem.snr_own - 3
    last = row_of(report, 'fc/linear')
    assert last.is_output and last.snr_total < last.snr_own
    assert report.outputs == {last.name: last.snr_total}
    assert report.images == 2


def test_total_noise_is_own_and_inherited(report):
    for layer in report.layers:
        if layer.snr_total is None or layer.snr_inherited > 90:
            continue
        noise = 10 ** (-layer.snr_own / 10) + 10 ** (-layer.snr_inherited / 10)
        own_is_larger = layer.snr_own < layer.snr_total
        assert own_is_larger or 10 ** (-layer.snr_total / 10) == pytest.approx(noise)


def test_own_noise_is_that_of_rounding_a_single_layer():
    torch.manual_seed(0)
    net = Forward(lambda net, x: net.fc(x), fc=nn.Linear(64, 64, bias=False)).eval()
    x = torch.randn(8, 64)
    quantization = calibrated(net, x, **ONNXRUNTIME)
    report = describe(quantization, 'toy', 'report')
    Measurement(quantization, runner_of(net)).fill(report, [x])
    layer = row_of(report, 'linear')
    weight = net.fc.weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    y = x @ weight.T
    own = x @ (scale * (weight / scale).round()).T
    grid = quantization.activations.host_grid(layer.activation.name)
    own = (own / grid.scale).round().clamp(grid.low, grid.high) * grid.scale
    expected = 10 * torch.log10(y.square().sum() / (own - y).square().sum())
    assert layer.snr_own == pytest.approx(float(expected), abs=0.05)


def test_without_rounding_anywhere_it_is_the_float_network(toy_net, images):
    # That the two passes compare the same tensors, whatever layer or path they are of.
    quantization = calibrated(toy_net, images, **ONNXRUNTIME)
    signals, found = FloatSignals(quantization), Differences()
    run = runner_of(toy_net)
    everything = [spec.name for spec in quantization.plan.specs]
    with torch.no_grad():
        run(signals, images)
        run(
            QuantizedSignals(quantization, signals.reference, found, everything), images
        )
    assert set(found.ratios()) == {key[0] for key in signals.reference}
    assert min(decibels(*pair) for pair in found.ratios().values()) > 100


def test_nothing_is_changed_by_measuring(toy_net, images):
    quantization = calibrated(toy_net, images, **ONNXRUNTIME)
    before = {k: v.clone() for k, v in toy_net.state_dict().items()}
    expected, state = toy_net(images), torch.get_rng_state()
    Measurement(quantization, runner_of(toy_net)).fill(
        describe(quantization, 'toy', 'report'), [images]
    )
    assert differences(before, toy_net.state_dict()) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(toy_net(images), expected)


def test_a_coarse_layer_costs_most(toy_net, images):
    report = measure(toy_net, images, overrides={'expand': 3})
    assert report.costliest(1)[0].module == 'expand'
    assert report.costliest(1)[0].share > 0.5
    assert sum(layer.share for layer in report.layers) == pytest.approx(1)


# Of all tensors.
SIX = dict(bits=dict(weight=6, activation=6, sum=6, output=6), edge_bits=6)


def test_shares_rank_as_a_trial_of_each_layer_does(toy_net, images):
    # To first order, and with independent errors: what raising one layer alone brings.
    quantization = calibrated(toy_net, images, **ONNXRUNTIME, **SIX)
    report = describe(quantization, 'toy', 'report')
    run = runner_of(toy_net)
    Measurement(quantization, run).fill(report, [images])
    signals = FloatSignals(quantization)
    ends = output_steps(quantization.plan)

    def noise(raised):
        found = Differences()
        with torch.no_grad():
            run(signals, images)
            run(
                QuantizedSignals(quantization, signals.reference, found, raised, ends),
                images,
            )
        signal, noise = next(iter(found.ratios().values()))
        return noise / signal

    every = {spec.name for spec in quantization.plan.specs}
    alone, shares = [], []
    for layer in report.layers:
        own = {layer.activation.name, layer.weight.name if layer.weight else None}
        users = [x for x in report.layers if x.activation.name == layer.activation.name]
        if len(users) == 1:
            alone.append(noise(every - own))
            shares.append(layer.share)
    order = torch.tensor(alone).argsort(descending=True)[:2].tolist()
    assert {shares.index(max(shares))} <= set(order)


def test_a_limit_of_no_time_measures_one_image_and_says_what_is_missing(
    toy_net, images
):
    report = measure(toy_net, images, limit=0.0)
    assert report.images == 1 and report.layers and not report.trials
    assert any('images' in text for text in report.skipped)
    assert 'what each layer puts into the outputs' in report.skipped
    assert all(layer.share is None for layer in report.layers)
    assert report.costliest()[0].snr_own <= report.costliest()[1].snr_own


def test_a_shared_head_is_measured_at_each_level():
    net = randomize_norms(ToyDetector()).eval()
    x = torch.randn(2, 3, 16, 16)
    quantization = calibrated(net, x, **ONNXRUNTIME)
    report = describe(quantization, 'toy', 'report')
    Measurement(quantization, runner_of(net)).fill(report, [x])
    heads = [layer for layer in report.layers if layer.module == 'head.cls']
    assert len(heads) == 2 and all(layer.is_output for layer in heads)
    assert report.size['quantized'] < report.size['float'] / 3


def test_a_frozen_model_has_shares_too(toy_net, images):
    report = measure(toy_net.requires_grad_(False), images)
    assert sum(layer.share for layer in report.layers) == pytest.approx(1)


def test_a_model_of_half_the_bits_is_described():
    report = measure(
        randomize_norms(ToyNet()).eval(), torch.randn(2, 3, 16, 16), bits=4, edge_bits=4
    )
    assert set(report.quantized['weights']) == {'4'}

"""Corrections that images which they did not see judge."""

import copy

import pytest
import torch
from toy_models import ToyNet, randomize_norms

from mmquant_jacinto import QuantCalibrateModule
from mmquant_jacinto.methods import judged_corrections

COARSE = dict(target='onnxruntime', bits=4, edge_bits=4, observer='minmax')


def images(count):
    torch.manual_seed(1)
    return [torch.randn(4, 3, 16, 16) for _ in range(count)]


def calibrated(batches, net=None, **quantize):
    torch.manual_seed(0)
    net = net or randomize_norms(ToyNet())
    model = QuantCalibrateModule(net.eval(), batches[0], **{**COARSE, **quantize})
    model.train()
    references = [model.calibrate_step(batch, None, 0.0) for batch in batches]
    for batch, reference in zip(batches, references):
        model.calibrate_step(batch, reference, 0.05)
    return model


@pytest.fixture
def said(monkeypatch):
    """What is logged of it."""
    lines = []
    monkeypatch.setattr(
        judged_corrections, 'print_log', lambda line, *_: lines.append(line)
    )
    return lines


def test_good_ones_stay_to_the_bit(said):
    first, *others = images(6)
    model = calibrated(others)
    biases = model.quantization.bias_correction.clone()
    assert biases.any()
    assert model.judge_corrections([first]).is_kept
    assert 'without.' in said[0]
    assert torch.equal(model.quantization.bias_correction, biases)


@pytest.mark.parametrize('weights', [False, True])
def test_bad_ones_are_taken_back_whole(weights, said):
    first, *others = images(6)
    model = calibrated(others, calibration=dict(weights=weights))
    plain = calibrated(others, calibration=dict(epochs=0)).eval()
    state = model.quantization
    with torch.no_grad():
        state.bias_correction.add_(3.0)
    assert not model.judge_corrections([first]).is_kept
    assert 'there are none' in said[0]
    assert not state.bias_correction.any() and (state.weight_correction == 1).all()
    assert torch.equal(model.eval()(first), plain(first))


def test_the_reference_is_the_float_model_where_weights_were_rounded():
    """Else rounding alone would be no error, and every correction one."""
    first, *others = images(6)
    torch.manual_seed(0)
    net = randomize_norms(ToyNet()).eval()
    model = QuantCalibrateModule(
        copy.deepcopy(net),
        others[0],
        rounding=dict(method='coordinate_descent'),
        **COARSE,
    ).train()
    for batch in others:
        model.calibrate_step(batch, None, 0.0)
    model.round_weights(others)
    kept = model._float_weights
    assert all(torch.equal(kept[name], p) for name, p in net.named_parameters())
    changed = dict(model.module.named_parameters())
    assert any(not torch.equal(kept[name], changed[name]) for name in kept)


def test_without_outputs_to_compare_they_stay(said):
    batches = images(3)
    model = calibrated(batches)
    biases = model.quantization.bias_correction.clone()
    nothing = [torch.full_like(batches[0], torch.nan)]
    assert model.judge_corrections(nothing) == (True, None)
    assert 'can be compared' in said[0]
    assert torch.equal(model.quantization.bias_correction, biases)


@pytest.mark.parametrize('way', ['sequential', 'iterative', 'analytic'])
def test_judges_teach_nothing(way):
    """Whatever they hold, so long as ranges are the same."""
    found = []
    for copied in (0, 1):
        first, *others = images(4)
        torch.manual_seed(0)
        model = QuantCalibrateModule(
            randomize_norms(ToyNet()).eval(),
            first,
            calibration=dict(bias_correction=way),
            **COARSE,
        ).train()
        batches = [others[copied], *others]
        references = [
            model.calibrate_step(batch, None, 0.0, is_held_out=index == 0)
            for index, batch in enumerate(batches)
        ]
        for index, (batch, reference) in enumerate(zip(batches, references)):
            model.calibrate_step(batch, reference, 0.05, is_held_out=index == 0)
        model.correct_analytically()
        found.append(model.quantization.bias_correction.clone())
    assert found[0].any() and torch.equal(*found)


def test_what_follows_a_judge_teaches():
    first, second = images(2)
    found = []
    for judged_before in (False, True):
        torch.manual_seed(0)
        model = QuantCalibrateModule(
            randomize_norms(ToyNet()).eval(),
            first,
            calibration=dict(bias_correction='analytic'),
            **COARSE,
        ).train()
        if judged_before:
            model.calibrate_step(second, None, 0.0, is_held_out=True)
        model.observe(second)
        model.correct_analytically()
        found.append(model.quantization.bias_correction.clone())
    assert found[0].any() and torch.equal(*found)


def test_float_gives_its_outputs_once(said, monkeypatch):
    first, *others = images(6)
    model = calibrated(others)
    run, seen = model._run_with, []

    def noted(behaviour, batch):
        seen.append(type(behaviour).__name__)
        run(behaviour, batch)

    monkeypatch.setattr(model, '_run_with', noted)
    model.judge_corrections([first])
    assert seen == ['FloatOutputs', 'Student', 'Student']

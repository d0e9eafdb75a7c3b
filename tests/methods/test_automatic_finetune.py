"""Calibrations that go on with fine-tuning by themselves, or do not, and say why."""

import copy
import functools
import math

import pytest
import torch
from toy_models import ToyNet, make_plan, randomize_norms
from toy_runner import log_of, make_config, train

from mmquant_jacinto import QuantCalibrateModule, QuantizeConfig, QuantTestModule
from mmquant_jacinto.config.sections import Finetune
from mmquant_jacinto.execute.corrections.conditioning import compute_grids
from mmquant_jacinto.methods import finetune, network_outputs
from mmquant_jacinto.methods.finetune import BOUND, decibels, decide
from mmquant_jacinto.methods.judged_corrections import Judgement
from mmquant_jacinto.quantizers.weight_grids import WeightGrids
from mmquant_jacinto.wrappers import finetuned_module

FEW = dict(bits=4, edge_bits=4)
SHORT = functools.partial(Finetune, iterations=20, lr=0.05, augment=False)


@pytest.fixture
def short(monkeypatch):
    """What is trained by itself is trained shortly."""
    monkeypatch.setattr(finetuned_module, 'Finetune', SHORT)


def images(count=4):
    torch.manual_seed(1)
    return [torch.randn(4, 3, 16, 16) for _ in range(count)]


def calibrated(batches, **quantize):
    torch.manual_seed(0)
    net = randomize_norms(ToyNet()).eval()
    quantize = dict(dict(target='onnxruntime'), **quantize)
    model = QuantCalibrateModule(net, batches[0], **quantize).train()
    for batch in batches:
        model(batch)
    return model


def weight_steps(state):
    grids = WeightGrids(state.plan, state.layers, state.activations)
    compute_grids(grids, state)
    return grids.all_steps


def state_of(model):
    return copy.deepcopy(model.module.state_dict())


def differences(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize('target', ['jacinto', 'onnxruntime', 'tensorrt'])
@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(weight_observer='mse'),
        dict(calibration=dict(weights=True)),
        dict(observer='mse', bits=8),
    ],
)
def test_learned_scales_start_from_the_very_grids(target, options):
    batches = images()
    model = calibrated(batches, **{**FEW, 'target': target, **options}).eval()
    state = model.quantization
    before = weight_steps(state), model(batches[0])
    grids = {
        s.name: state.activations.host_grid(s.name) for s in state.plan.activations
    }
    state.learn_scales()
    assert state.plan.is_learned and len(list(state.learned.parameters())) == 1
    assert torch.equal(weight_steps(state), before[0])
    assert grids == {name: state.activations.host_grid(name) for name in grids}
    assert torch.equal(model(batches[0]), before[1])
    test = QuantTestModule(ToyNet()).eval()
    test.module.load_state_dict(model.module.state_dict())
    assert torch.equal(test(batches[0]), before[1])


def test_what_starts_by_itself_is_what_would_be_asked_for(short):
    batches, found = images(), []
    for options in (None, dict(iterations=20, lr=0.05, augment=False)):
        model = calibrated(batches, finetune=options, **FEW)
        if options is None:
            assert not model.plan.is_learned
            model.finetune_if_far(batches, 4, Judgement(True, 1.0))
        else:
            model.finetune(batches)
        found.append(state_of(model))
    assert found[0]['quantization.learned.log2_scale'].any()
    assert not differences(*found)


@pytest.mark.parametrize(
    'options, fires',
    [
        (dict(), True),
        (dict(bits=dict(weight=4, activation=8)), True),
        (dict(bits=8), False),
        (dict(bits=8, overrides={'conv': 3}), True),
        (dict(finetune=False), False),
        (dict(rounding='coordinate_descent'), False),
    ],
)
@pytest.mark.parametrize('error', [0.9 * BOUND, 1.1 * BOUND, math.nan, None])
def test_few_bits_and_a_large_error_start_it(options, fires, error, short, monkeypatch):
    batches = images(2)
    model = calibrated(batches, **{**FEW, **options})
    monkeypatch.setattr(model, 'output_error', lambda batches: error)
    before = state_of(model)
    model.finetune_if_far(batches, 2, None)
    starts = fires and error is not None and error > BOUND
    assert model.plan.is_learned == starts
    if not starts:
        assert not differences(before, state_of(model))


@pytest.mark.parametrize(
    'bits, error, said',
    [
        (4, 0.5, ['3.0 dB', 'less than 20 dB', 'finetune=False leaves']),
        (4, 0.001, ['on 2 batches', '30.0 dB', 'no less than 20 dB: none']),
        (8, 0.5, ['3.0 dB', 'finetune=True trains', 'asked for']),
        (8, 0.001, ['30.0 dB', 'none']),
        (4, None, ['no output of the network can be compared']),
        (4, math.inf, ['no output of the network is finite']),
    ],
)
def test_log_says_why(bits, error, said, monkeypatch):
    lines = []
    monkeypatch.setattr(finetune, 'print_log', lambda line, *_: lines.append(line))
    plan = make_plan(ToyNet(), torch.randn(1, 3, 8, 8), mode='ptq', bits=bits)
    assert decide(plan, error, 2) == (bits == 4 and error == 0.5)
    assert len(lines) == 1 and all(part in lines[0] for part in said), lines


def test_error_is_what_is_lost_of_the_outputs():
    batches = images(2)
    model = calibrated(batches, **FEW)
    found = model.output_error(batches)
    # Integers round a little otherwise than what simulates them.
    model.eval()
    net = ToyNet().eval()
    weights = model.module.state_dict()
    net.load_state_dict({k: v for k, v in weights.items() if 'quantization' not in k})
    with torch.no_grad():
        errors = [
            (model(x) - net(x)).square().sum() / net(x).square().sum() for x in batches
        ]
    assert found == pytest.approx(torch.stack(errors).mean().item(), rel=0.3)
    assert decibels(0.1) == pytest.approx(10)


def test_judges_are_not_asked_twice(short, monkeypatch):
    batches = images(2)
    model = calibrated(batches, **FEW)
    asked = []
    monkeypatch.setattr(model, 'output_error', asked.append)
    model.finetune_if_far(batches, 2, Judgement(True, 2 * BOUND))
    assert model.plan.is_learned and not asked


def test_where_nothing_can_be_compared_it_stays_calibrated(monkeypatch):
    batches = images(2)
    model = calibrated(batches, **FEW)
    before = state_of(model)
    monkeypatch.setattr(network_outputs, 'output_quantizers', lambda plan: set())
    model.finetune_if_far(batches, 2, None)
    assert not differences(before, state_of(model))


def test_what_diverges_is_put_back(monkeypatch):
    diverging = functools.partial(Finetune, iterations=20, lr=1e6, augment=False)
    monkeypatch.setattr(finetuned_module, 'Finetune', diverging)
    batches, lines = images(2), []
    monkeypatch.setattr(
        finetuned_module, 'print_log', lambda line, *_: lines.append(line)
    )
    model = calibrated(batches, **FEW).eval()
    expected = model(batches[0])
    model.train().finetune_if_far(batches, 2, Judgement(True, 1.0))
    assert 'diverged' in lines[0] and 'as it is calibrated' in lines[0]
    assert torch.equal(model.eval()(batches[0]), expected)


@pytest.mark.parametrize(
    'options, may',
    [
        (dict(), True),
        (dict(bits=8), True),
        (dict(finetune=True), False),
        (dict(finetune=False), False),
        (dict(max_drop=0.5), False),
        (dict(rounding='adaround'), False),
        (dict(mixed_precision=dict(average_bits=5)), True),
        (dict(mode='qat'), False),
    ],
)
def test_what_was_chosen_by_score_or_by_a_method_stays(options, may):
    config = QuantizeConfig.parse({**dict(mode='ptq', bits=4), **options})
    assert config.may_finetune == may


@pytest.fixture(scope='module')
def float_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('float')
    train(make_config(folder))
    return folder / 'epoch_6.pth'


@pytest.mark.parametrize(
    'options, learned', [(dict(), True), (dict(finetune=False), False)]
)
def test_runner_decides_and_its_checkpoint_is_what_was_trained(
    options, learned, float_checkpoint, tmp_path, short
):
    quantize = dict(mode='ptq', target='onnxruntime', bits=2, edge_bits=2, **options)
    cfg = make_config(tmp_path, quantize, load_from=str(float_checkpoint))
    runner = train(cfg)
    log = log_of(tmp_path)
    assert ('less than 20 dB' in log) == ('iteration 20 of 20' in log) == learned
    stored = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert ('quantization.learned.log2_scale' in stored) == learned
    test = QuantTestModule(type(runner.model.module)()).eval()
    test.module.load_state_dict(stored)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(test(x), runner.model.eval()(x))
    # The run is finished, and knows it.
    cfg.update(resume=True, load_from=None)
    train(cfg)
    assert 'This checkpoint is calibrated already.' in log_of(tmp_path)
    # A training with learned scales goes on from them.
    qat = {**quantize, 'mode': 'qat', 'learned_scale': True}
    qat.pop('finetune', None)
    train(
        make_config(
            tmp_path / 'qat', qat, iters=2, load_from=str(tmp_path / 'epoch_1.pth')
        )
    )
    assert 'only its weights are loaded' not in log_of(tmp_path / 'qat')

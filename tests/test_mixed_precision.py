"""Mixed precision: sensitivities from their formula, and widths within a budget."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from torch import nn
from toy_models import (
    Forward,
    ToyDetector,
    ToyNet,
    make_plan,
    randomize_norms,
    seeded,
)
from toy_runner import (
    differences,
    load,
    log_of,
    make_config,
    state_of,
    train,
    val_scores,
)

from mmquant_jacinto import QuantCalibrateModule, QuantizeConfig, QuantizeError
from mmquant_jacinto.mixed_precision import BitSearch
from mmquant_jacinto.plan import Plan
from mmquant_jacinto.quantization import find_plan

FILE = 'mixed_precision.json'
CHECKPOINT = 'epoch_1.pth'


def calibrate_module(model, image, budget, **quantize):
    module = QuantCalibrateModule(
        model.eval(), image, mixed_precision=budget, target='onnxruntime', **quantize
    )
    return module.train()


def rounded(weight, bits):
    """A weight on the grid of `onnxruntime`: per channel, narrow, half to even."""
    high = 2 ** (bits - 1) - 1
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / high
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / scale), -high, high) * scale


def numpy_of(parameter):
    return parameter.detach().double().numpy()


# The sensitivity


def test_on_average_it_is_the_noise_to_signal_of_the_outputs():
    # Exactly so of a linear function; of two outputs, the ratios add up.
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: (net.fc(x)[:, :3], 50 * net.other(x)),
        fc=nn.Linear(6, 5, bias=False),
        other=nn.Linear(6, 2, bias=False),
    )
    x = torch.randn(1, 6)
    module = calibrate_module(net, x, dict(average_bits=5.0))
    module.observe(x)
    search = BitSearch(module.quantization, module.config.mixed_precision)
    for seed in range(600):
        search.probe(lambda: net(x), seed)
    noise = search.sensitivity.result()
    for name in ('fc', 'other'):
        weight, image = numpy_of(net.get_submodule(name).weight), numpy_of(x)[0]
        for bits, value in zip((4, 8), noise[name]):
            change = (rounded(weight, bits) - weight) @ image
            expected = np.square(change).sum() / np.square(weight @ image).sum()
            # A sample has a relative deviation of at most sqrt(2).
            assert value == pytest.approx(expected, rel=4 * (2 / 600) ** 0.5)


def test_a_sample_is_the_projection_of_what_rounding_does():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.fc(F.relu(net.norm(net.conv(x))).flatten(1)),
        conv=nn.Conv2d(2, 4, 3, bias=False),
        norm=nn.BatchNorm2d(4),
        fc=nn.Linear(16, 3),
    )
    x = torch.randn(1, 2, 4, 4)
    module = calibrate_module(randomize_norms(net), x, dict(average_bits=5.0))
    module.observe(x)
    search = BitSearch(module.quantization, module.config.mixed_precision)
    search.probe(lambda: net(x), 7)
    noise = search.sensitivity.result()

    generator = seeded(7)
    direction = torch.empty(1, 3).normal_(generator=generator).double()
    net.quantization.detach()
    del net.quantization
    reference = net.double()
    y = reference(x.double())
    weights = [reference.conv.weight, reference.fc.weight]
    gradients = torch.autograd.grad((direction * y).sum() / y.detach().norm(), weights)
    norm = reference.norm
    factor = numpy_of(norm.weight) / np.sqrt(numpy_of(norm.running_var) + norm.eps)
    for name, weight, gradient, scale in zip(
        ('conv', 'fc'), weights, gradients, (factor[:, None, None, None], 1.0)
    ):
        # The grid is that of the folded weight.
        weight = numpy_of(weight)
        for bits, value in zip((4, 8), noise[name]):
            change = rounded(weight * scale, bits) / scale - weight
            expected = (gradient.numpy() * change).sum() ** 2
            assert value == pytest.approx(expected, rel=1e-3)


def test_the_layer_that_matters_gets_the_bits():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: net.weak(x) + net.strong(x),
        weak=nn.Conv2d(3, 8, 3),
        strong=nn.Conv2d(3, 8, 3),
    )
    nn.init.normal_(net.strong.weight, std=10.0)
    images = [torch.randn(1, 3, 8, 8) for _ in range(4)]
    module = calibrate_module(net, images[0], dict(average_bits=6.0))
    table = module.search_bits(images)
    assert {name: layer.bits for name, layer in table.layers.items()} == {
        'weak': 4,
        'strong': 8,
    }
    assert table.average_bits == 6.0
    assert table.layers['strong'].noise[4] > 50 * table.layers['weak'].noise[4]


@pytest.mark.parametrize('frozen', [False, True])
def test_shared_heads_and_frozen_layers_are_measured(frozen):
    torch.manual_seed(0)
    net = ToyDetector()
    image = torch.randn(1, 3, 8, 8)
    net.requires_grad_(not frozen)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    noise = {
        name: layer.noise
        for name, layer in module.search_bits([image] * 2).layers.items()
    }
    assert set(noise) == {'backbone.conv', 'head.tower', 'head.cls'}
    assert all(values[4] > values[8] > 0 for values in noise.values())
    assert all(p.grad is None for p in net.parameters())


def test_a_head_that_ends_in_a_float_call_is_measured_before_it():
    torch.manual_seed(0)
    net = Forward(
        lambda net, x: torch.special.erf(net.two(F.relu(net.one(x)))),
        one=nn.Conv2d(3, 4, 1),
        two=nn.Conv2d(4, 4, 1),
    )
    image = torch.randn(1, 3, 8, 8)
    table = calibrate_module(net, image, dict(average_bits=6.0)).search_bits([image])
    assert all(layer.noise[4] > 0 for layer in table.layers.values())


def test_a_search_leaves_random_numbers_and_weights_alone():
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    before = {name: p.clone() for name, p in net.named_parameters()}
    torch.manual_seed(1)
    module.search_bits([image] * 2)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    assert not differences(before, dict(net.named_parameters()))


def test_an_image_that_gives_nan_counts_for_nothing():
    torch.manual_seed(0)
    image = torch.randn(1, 3, 16, 16)
    broken = torch.full_like(image, torch.nan)
    results = []
    for images in ([image], [image, broken]):
        torch.manual_seed(0)
        net = randomize_norms(ToyNet())
        module = calibrate_module(net, image, dict(average_bits=6.0))
        results.append(module.search_bits(images).layers)
    assert results[0] == results[1]


def test_images_that_all_give_nan_are_an_error():
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    with pytest.raises(QuantizeError, match='mixed_precision measured nothing'):
        module.search_bits([torch.full_like(image, torch.nan)])


@pytest.mark.parametrize('kind', ['last', 'one of two', 'in the middle'])
def test_layers_in_front_of_a_float_one_are_measured(kind):
    torch.manual_seed(0)
    convs = {name: nn.Conv2d(3, 3, 3) for name in ('first', 'second', 'third')}

    def forward(net, x):
        x = net.first(x).relu()
        if kind == 'one of two':
            return net.second(x).relu(), net.third(x)
        return net.third(net.second(x).relu())

    off = 'second' if kind == 'in the middle' else 'third'
    measured = {'first', 'second', 'third'} - {off}
    image = torch.randn(1, 3, 12, 12)
    module = calibrate_module(
        Forward(forward, **convs),
        image,
        dict(average_bits=6.0),
        overrides={off: False},
    )
    layers = module.search_bits([image]).layers
    assert set(layers) == measured
    assert all(min(layer.noise.values()) > 0 for layer in layers.values())


def test_scales_of_least_error_are_found_at_the_chosen_widths():
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(
        net,
        image,
        dict(average_bits=6.0),
        weight_observer='mse',
        calibration=dict(bias_correction=False),
    )
    before = module.quantization.weight_scale.clone()
    table = module.search_bits([image])
    found = module.quantization.weight_scale
    assert found.all() and not torch.equal(found, before)
    name, width = next((n, w.bits) for n, w in table.layers.items())
    scale = module.quantization.part_of(found, name)
    largest = module.quantization.layers[name].folded()[0].abs().flatten(1).amax(1)
    assert (scale <= largest / (2 ** (width - 1) - 1) * 1.001).all()


# The widths


@pytest.mark.parametrize('candidates', [(4, 8), (8, 4), (2, 3, 4, 8, 16)])
@pytest.mark.parametrize('average', [4.5, 6.0, 7.9])
def test_widths_are_candidates_within_the_budget(average, candidates):
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    budget = dict(average_bits=average, candidates=candidates)
    module = calibrate_module(net, image, budget, bits=dict(activation=16))
    table = module.search_bits([image] * 2)
    chosen = {name: spec.format.bits for name, spec in module.plan.weights.items()}
    assert chosen == {name: layer.bits for name, layer in table.layers.items()}
    assert set(chosen.values()) <= set(candidates)
    elements = {
        name: m.weight.numel() for name, m in net.named_modules() if name in chosen
    }
    used = sum(elements[name] * bits for name, bits in chosen.items())
    assert used <= average * sum(elements.values())
    assert table.average_bits == used / sum(elements.values())
    assert {spec.format.bits for spec in module.plan.activations[1:]} == {16}


def test_model_size_is_in_megabytes_of_weights():
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    elements = 216 + 576 + 64 + 32 + 60
    plans = [
        calibrate_module(randomize_norms(ToyNet()), image, budget)
        for budget in (
            dict(average_bits=6.0),
            dict(model_size=6.0 * elements / 8e6),
        )
    ]
    torch.manual_seed(0)
    for module in plans:
        module.module.load_state_dict(net.state_dict(), strict=False)
    first, second = (module.search_bits([image] * 2) for module in plans)
    assert first.layers == second.layers
    assert second.model_size <= 6.0 * elements / 8e6


def test_widths_of_overrides_stay_and_count():
    torch.manual_seed(0)
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(
        net,
        image,
        dict(average_bits=6.0),
        overrides={
            'conv': 5,
            'fc': dict(weight=16),
            'lateral': dict(activation=16),
            'expand': False,
        },
    )
    assert module.plan.undecided == ('stem', 'lateral')
    table = module.search_bits([image])
    widths = {name: layer.bits for name, layer in table.layers.items()}
    assert (widths['conv'], widths['fc']) == (5, 16)
    assert 'expand' not in widths
    assert not table.layers['conv'].noise
    assert table.average_bits <= 6.0


def test_the_table_is_text_and_json():
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(net, image, dict(average_bits=6.0))
    table = module.search_bits([image])
    text = str(table)
    assert all(name in text for name in module.plan.weights)
    data = json.loads(table.to_json())
    assert data['settings']['average_bits'] == 6.0
    assert data['average_bits'] == table.average_bits
    layer = data['layers']['conv']
    assert layer['elements'] == 576
    assert layer['bits'] == module.plan.weights['conv'].format.bits
    assert set(layer['noise']) == {'4', '8'}


def test_calibration_and_integers_work_at_the_widths():
    torch.manual_seed(0)
    net = randomize_norms(ToyNet())
    images = [torch.randn(1, 3, 16, 16) for _ in range(4)]
    module = calibrate_module(net, images[0], dict(average_bits=6.0))
    exact = net.eval()(images[0]).detach()
    with pytest.raises(QuantizeError, match='call search_bits'):
        module(images[0])
    module.search_bits(images)
    ranges = module.quantization.activations.high.clone()
    assert ranges.any()
    with pytest.raises(QuantizeError, match='no width to choose'):
        module.search_bits(images)
    for image in images:
        module(image)
    module.eval()
    out = module(images[0])
    assert not torch.equal(out, exact)
    assert out == pytest.approx(exact.numpy(), abs=0.2 * float(exact.abs().max()))
    # The checkpoint brings the widths.
    other = QuantCalibrateModule(randomize_norms(ToyNet())).eval()
    other.module.load_state_dict(net.state_dict())
    assert torch.equal(other(images[0]), out)


def test_undecided_plans_survive_json():
    net, image = randomize_norms(ToyNet()).eval(), torch.randn(1, 3, 16, 16)
    plan = make_plan(net, image, mode='ptq', mixed_precision=dict(average_bits=6))
    assert len(plan.undecided) == 5
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    chosen = Plan.from_json(plan.with_weight_bits({'conv': 4}).to_json())
    assert not chosen.decides(plan)
    assert not plan.undecided == make_plan(net, image, mode='ptq').undecided


# Refusals


@pytest.mark.parametrize(
    'value, words',
    [
        (dict(candidates=(4, 8)), ['no budget', 'average_bits', 'model_size']),
        (dict(average_bits=5, model_size=1), ['average_bits and model_size']),
        (dict(average_bits=0), ['average_bits=0']),
        (dict(average_bits=True), ['average_bits=True']),
        (dict(model_size='1MB'), ["model_size='1MB'"]),
        (dict(average_bits=float('nan')), ['average_bits=nan']),
        (dict(average_bits=5, candidates=(1, 8)), ['candidates=1', '2 to 16']),
        (dict(average_bits=5, candidates=(8, 32)), ['candidates=32']),
        (dict(average_bits=5, candidates=(8, 8)), ['no choice']),
        (dict(average_bits=5, candidates=8), ['candidates=8']),
        (dict(average_bits=5, num_images=0), ['num_images=0']),
        (dict(average_bit=5), ['average_bit is not a known key', 'average_bits']),
        (5, ['mixed_precision=5']),
    ],
)
def test_a_wrong_setting_is_named(value, words):
    with pytest.raises(QuantizeError) as caught:
        QuantizeConfig.parse(dict(mode='ptq', mixed_precision=value))
    for word in words:
        assert word in str(caught.value)


def test_training_does_not_search_and_says_what_to_do():
    with pytest.raises(QuantizeError, match="mixed_precision='WORK_DIR/mixed_prec"):
        QuantizeConfig.parse(dict(mixed_precision=dict(average_bits=5)))


@pytest.mark.parametrize('value', [None, False, {}])
def test_a_falsy_setting_is_none(value):
    config = QuantizeConfig.parse(dict(mode='ptq', mixed_precision=value))
    assert config.mixed_precision is None


@pytest.mark.parametrize(
    'budget, reach',
    [
        (dict(average_bits=3.9), 'from 4 to 8 bits'),
        (dict(average_bits=8.1), 'from 4 to 8 bits'),
        (dict(average_bits=17, candidates=(2, 16)), 'from 2 to 16 bits'),
        (dict(model_size=1.0), 'megabytes'),
    ],
)
def test_a_budget_out_of_reach_is_refused_with_what_is_in_reach(budget, reach):
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    with pytest.raises(QuantizeError, match='out of reach') as caught:
        calibrate_module(net, image, budget)
    assert reach in str(caught.value)


@pytest.mark.parametrize('average, bits', [(4, 4), (8, 8)])
def test_the_ends_of_the_reach_are_in_reach(average, bits):
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    module = calibrate_module(net, image, dict(average_bits=average))
    table = module.search_bits([image])
    assert all(layer.bits == bits for layer in table.layers.values())


def test_nothing_to_choose_is_refused():
    net, image = randomize_norms(ToyNet()), torch.randn(1, 3, 16, 16)
    with pytest.raises(QuantizeError, match='no width to choose'):
        calibrate_module(net, image, dict(average_bits=6.0), overrides={'*': 8})


WIDTHS = '{"settings": {"average_bits": 5}, "layers": %s}'


@pytest.mark.parametrize(
    'text, words',
    [
        (None, ['cannot be read', "mode='ptq'"]),
        ('{"layers": 3}', ['cannot be read']),
        (WIDTHS % '[]', ['cannot be read']),
        (WIDTHS % '{"conv": {"bits": 33}}', ['bits of conv=33 is not a bit width']),
        (WIDTHS % '{"conv": {"bits": 4.7}}', ['bits of conv=4.7 is not a bit width']),
        ('not json', ['cannot be read']),
    ],
)
def test_a_file_without_widths_is_refused(text, words, tmp_path):
    path = tmp_path / FILE
    if text is not None:
        path.write_text(text)
    net, image = randomize_norms(ToyNet()).eval(), torch.randn(1, 3, 16, 16)
    with pytest.raises(QuantizeError) as caught:
        make_plan(net, image, mixed_precision=str(path))
    for word in (*words, str(path)):
        assert word in str(caught.value)


# Through the Runner

BUDGET = dict(average_bits=5.5, num_images=20)
MIXED = dict(mode='ptq', target='onnxruntime', mixed_precision=BUDGET)


@pytest.fixture(scope='module')
def mixed_dir(tmp_path_factory):
    """The work dir of a calibration that chose widths."""
    work_dir = tmp_path_factory.mktemp('mixed')
    train(make_config(work_dir, MIXED, **{'model.hidden': 16}))
    return work_dir


def config(work_dir, quantize, **changes):
    return make_config(work_dir, quantize, **{'model.hidden': 16}, **changes)


def widths_of(checkpoint):
    plan = find_plan(state_of(checkpoint))
    return {name: spec.format.bits for name, spec in plan.weights.items()}


def test_a_config_chooses_widths_and_leaves_them(mixed_dir):
    data = json.loads((mixed_dir / FILE).read_text())
    widths = {name: layer['bits'] for name, layer in data['layers'].items()}
    assert set(widths.values()) == {4, 8}
    assert widths_of(mixed_dir / CHECKPOINT) == widths
    assert data['average_bits'] <= 5.5
    assert 'Sensitivity of weights: 20 images' in log_of(mixed_dir)
    assert log_of(mixed_dir).count('Mixed precision: ') == 1
    state = state_of(mixed_dir / CHECKPOINT)
    assert state['quantization.activations.count'].all()
    assert state['quantization.bias_correction'].any()


@pytest.mark.parametrize('quantize', [MIXED, dict(mode='qat')])
def test_the_checkpoint_tests_as_it_was_validated(quantize, mixed_dir, tmp_path):
    cfg = config(tmp_path, quantize, load_from=str(mixed_dir / CHECKPOINT))
    assert Runner.from_cfg(cfg).test() == val_scores(mixed_dir)[0]


def test_the_same_run_chooses_the_same(mixed_dir, tmp_path):
    train(config(tmp_path, MIXED))
    assert (tmp_path / FILE).read_text() == (mixed_dir / FILE).read_text()
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, mixed_dir))
    assert not differences(ours, theirs)


def test_a_finished_run_resumes(mixed_dir, tmp_path):
    resume = dict(load_from=str(mixed_dir / CHECKPOINT), resume=True)
    runner = train(config(tmp_path, MIXED, **resume))
    assert 'calibrated already' in log_of(tmp_path)
    assert val_scores(tmp_path) == val_scores(mixed_dir)
    state = runner.model.module.state_dict()
    assert not differences(state, state_of(mixed_dir / CHECKPOINT))
    other = dict(MIXED, mixed_precision=dict(BUDGET, average_bits=6.0))
    with pytest.raises(QuantizeError, match='another quantization plan'):
        train(config(tmp_path / 'other', other, **resume))


def test_found_widths_in_another_calibration_give_the_same(mixed_dir, tmp_path):
    # Ranges are measured alike, so that all is the same.
    found = dict(MIXED, mixed_precision=str(mixed_dir / FILE))
    train(config(tmp_path, found))
    ours, theirs = (state_of(d / CHECKPOINT) for d in (tmp_path, mixed_dir))
    assert not differences(ours, theirs)
    assert not (tmp_path / FILE).exists()


def test_training_takes_found_widths_and_the_calibrated_ranges(mixed_dir, tmp_path):
    quantize = dict(target='onnxruntime', mixed_precision=str(mixed_dir / FILE))
    cfg = config(tmp_path, quantize, iters=4, load_from=str(mixed_dir / CHECKPOINT))
    train(cfg)
    assert 'belong to another' not in log_of(tmp_path)
    assert widths_of(tmp_path / 'iter_4.pth') == widths_of(mixed_dir / CHECKPOINT)
    assert load(tmp_path / 'iter_4.pth')['meta']['iter'] == 4


def test_overrides_win_over_found_widths(mixed_dir, tmp_path):
    quantize = dict(
        target='onnxruntime',
        mixed_precision=str(mixed_dir / FILE),
        overrides={'backbone.stem': 16},
    )
    train(config(tmp_path, quantize, iters=2))
    widths = widths_of(tmp_path / 'iter_2.pth')
    expected = dict(widths_of(mixed_dir / CHECKPOINT), **{'backbone.stem': 16})
    assert widths == expected


def test_widths_of_another_model_are_refused(mixed_dir, tmp_path):
    quantize = dict(mixed_precision=str(mixed_dir / FILE))
    with pytest.raises(QuantizeError, match='another model.* no width for head'):
        train(make_config(tmp_path, quantize))

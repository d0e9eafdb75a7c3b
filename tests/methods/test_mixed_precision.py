"""Mixed precision: widths within a budget, and budgets that are none."""

import json

import pytest
import torch
from bit_search import calibrate_module
from toy_models import ToyNet, make_plan, randomize_norms

from mmquant_jacinto import QuantCalibrateModule, QuantizeConfig, QuantizeError
from mmquant_jacinto.plan.plan import Plan

FILE = 'mixed_precision.json'


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


@pytest.mark.parametrize('value', [None, False])
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
    # By one random projection a layer that hardly matters may lose by more bits.
    table = module.search_bits([torch.randn(1, 3, 16, 16) for _ in range(16)])
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

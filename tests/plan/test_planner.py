"""Which calls are one operation, with which weight, and which stay in float."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyHead, calibrated, make_plan
from toy_plans import activations, chains, conv

from mmquant_jacinto import QuantizeError, quantize_model
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.plan.summary import summarize


def test_plan_of_the_toy_net(toy_net, images):
    plan = make_plan(toy_net, images)
    assert chains(plan) == {
        'stem/conv2d': ['stem/conv2d', 'stem_norm/batch_norm', 'act/relu'],
        'conv/conv2d': ['conv/conv2d', 'norm/batch_norm', 'act#1/relu'],
        'expand/conv2d': ['expand/conv2d'],
        '/add': ['/add', '/relu'],
        '/max_pool2d': ['/max_pool2d'],
        'lateral/conv2d': ['lateral/conv2d'],
        '/interpolate': ['/interpolate'],
        '/cat': ['/cat'],
        '/adaptive_avg_pool2d': ['/adaptive_avg_pool2d'],
        '/flatten': ['/flatten'],
        'fc/linear': ['fc/linear'],
    }
    assert list(activations(plan)) == [
        '/input',
        'stem/conv2d',
        'conv/conv2d',
        'expand/conv2d',
        '/add',
        '/adaptive_avg_pool2d',
        'fc/linear',
    ]
    assert {name: spec.norm for name, spec in plan.weights.items()} == {
        'stem': 'stem_norm',
        'conv': 'norm',
        'expand': None,
        'lateral': None,
        'fc': None,
    }
    assert plan.in_float == {}


def test_chain_is_quantized_once_at_its_end(toy_net, images):
    steps = make_plan(toy_net, images).steps
    chain = [steps[name] for name in ('conv/conv2d', 'norm/batch_norm', 'act#1/relu')]
    assert [step.last for step in chain] == [False, False, True]
    assert [step.follows for step in chain] == [False, True, True]
    assert {step.output for step in chain} == {'conv/conv2d'}
    assert {step.clip for step in chain} == {(0.0, None)}
    assert {step.weight for step in chain} == {'conv'}
    assert chain[0].inputs == ('stem/conv2d',)


def test_output_with_two_consumers_is_not_fused(image):
    plan = make_plan(
        Forward(lambda net, x: F.relu(y := net.one(x)) + y, one=conv()), image
    )
    assert chains(plan) == {name: [name] for name in ('one/conv2d', '/relu', '/add')}
    assert list(activations(plan)) == ['/input', 'one/conv2d', '/relu', '/add']


def test_output_that_leaves_the_region_is_not_fused(image):
    plan = make_plan(
        Forward(lambda net, x: (y := net.one(x), F.relu(y)), one=conv()), image
    )
    assert chains(plan) == {'one/conv2d': ['one/conv2d'], '/relu': ['/relu']}


def test_normalization_behind_an_activation_is_not_folded(image):
    plan = make_plan(
        Forward(
            lambda net, x: net.norm(F.relu(net.one(x))),
            one=conv(),
            norm=nn.BatchNorm2d(8),
        ),
        image,
    )
    assert chains(plan) == {
        'one/conv2d': ['one/conv2d', '/relu'],
        'norm/batch_norm': ['norm/batch_norm'],
    }
    assert plan.weights['one'].norm is None


def test_normalization_without_running_statistics_is_not_folded(image):
    # There is nothing to fold: it normalizes with the batch in eval too.
    net = Forward(
        lambda net, x: net.norm(net.one(x)),
        one=conv(),
        norm=nn.BatchNorm2d(8, track_running_stats=False),
    )
    expected = net(image)
    calibrated(net, image, bits=16)
    torch.testing.assert_close(net(image), expected, atol=1e-2, rtol=1e-2)


def test_shared_head_has_one_weight_and_a_scale_for_each_level():
    levels = [torch.randn(1, 8, size, size) for size in (8, 4)]
    plan = make_plan(ToyHead(), levels)
    assert list(plan.weights) == ['tower', 'cls']
    assert [name for name in activations(plan) if 'cls' in name] == [
        'cls/conv2d',
        'cls#1/conv2d',
    ]


def test_layers_inside_an_opaque_function_are_not_passed_over_in_silence():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = Forward(
        lambda net, x: net.attention(x, x, x)[0] + net.one(x),
        attention=attention,
        one=nn.Linear(8, 8),
    )
    plan = make_plan(net.eval(), torch.randn(1, 5, 8))
    assert any('attention' in name for name in [*plan.weights, *plan.in_float])


def test_nothing_to_quantize_is_refused(image):
    net = Forward(lambda net, x: net.norm(x) + 1, norm=nn.BatchNorm2d(3))
    with pytest.raises(QuantizeError, match='nothing to quantize'):
        make_plan(net.eval(), image)


def test_plan_depends_on_the_network_not_on_the_images(toy_net, images):
    plan = make_plan(toy_net, images)
    assert make_plan(toy_net, torch.zeros(1, 3, 32, 32)) == plan


def test_convolution_with_several_normalizations_has_a_weight_for_each(image):
    # As heads that share convolutions over levels, but no statistics.
    net = Forward(
        lambda net, x: net.first(net.one(x)) + net.second(net.one(x)),
        one=conv(),
        first=nn.BatchNorm2d(8),
        second=nn.BatchNorm2d(8),
    )
    plan = make_plan(net.eval(), image)
    assert {name: (spec.weight, spec.norm) for name, spec in plan.weights.items()} == {
        'one+first': ('one.weight', 'first'),
        'one+second': ('one.weight', 'second'),
    }
    assert plan.steps['one/conv2d'].weight == 'one+first'
    assert plan.steps['one#1/conv2d'].weight == 'one+second'


def test_weight_that_is_used_with_two_biases_keeps_both(image):
    one, two = conv(), conv()
    nn.init.constant_(one.bias, 2.0)
    nn.init.constant_(two.bias, -2.0)
    net = Forward(
        lambda net, x: torch.cat(
            [
                F.conv2d(x, net.one.weight, net.one.bias),
                F.conv2d(x, net.one.weight, net.two.bias),
            ],
            1,
        ),
        one=one,
        two=two,
    )
    expected = net(image)
    calibrated(net, image, bits=16)
    torch.testing.assert_close(net(image), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize('target, per_channel', [('tidl', True), ('jacinto', False)])
def test_weight_format_is_the_presets(toy_net, images, target, per_channel):
    plan = make_plan(toy_net, images, target=target)
    assert {spec.format.per_channel for spec in plan.weights.values()} == {per_channel}
    assert {spec.axis for spec in plan.weights.values()} == {0}


def test_grouped_transposed_convolution_is_quantized_per_tensor(image):
    net = Forward(
        lambda net, x: net.three(net.two(net.one(x))),
        one=conv(3, 4),
        two=nn.ConvTranspose2d(4, 6, 2),
        three=nn.ConvTranspose2d(6, 4, 2, groups=2),
    )
    weights = make_plan(net, image, target='onnxruntime').weights
    assert (weights['two'].axis, weights['two'].channels) == (1, 6)
    assert weights['two'].format.per_channel
    assert (weights['three'].axis, weights['three'].channels) == (1, 4)
    assert not weights['three'].format.per_channel


@pytest.mark.parametrize('target', ['jacinto', 'tidl', 'tensorrt'])
@pytest.mark.parametrize(
    'per_channel, expected',
    [
        (True, [True] * 4),
        (False, [False] * 4),
        ('depthwise', [False, True, False, False]),
    ],
)
def test_per_channel_is_of_all_of_none_or_of_depthwise_layers(
    target, per_channel, expected, image
):
    net = Forward(
        lambda net, x: net.fc(net.grouped(net.wise(net.plain(x))).mean((2, 3))),
        plain=conv(3, 4),
        wise=nn.Conv2d(4, 8, 3, groups=4),
        grouped=nn.Conv2d(8, 4, 3, groups=4),
        fc=nn.Linear(4, 2),
    )
    plan = make_plan(net, image, target=target, per_channel=per_channel)
    formats = [plan.weights[name].format for name in ('plain', 'wise', 'grouped', 'fc')]
    assert [fmt.per_channel for fmt in formats] == expected
    # Nothing else of the preset changes.
    assert {fmt.power_of_two for fmt in formats} == {target == 'jacinto'}
    assert Plan.from_json(plan.to_json()) == plan


def test_per_channel_reaches_computed_weights(image):
    net = Forward(
        lambda net, x: F.conv2d(net.one(x), net.two.weight * 2),
        one=conv(3, 4),
        two=conv(4, 4),
    )
    steps = make_plan(net, image, per_channel=True).steps
    (fmt,) = {step.weight_format for step in steps.values() if step.weight_format}
    assert fmt.per_channel and fmt.power_of_two


@pytest.mark.parametrize(
    'quantize, observers',
    [
        (dict(), ['percentile']),
        (dict(bits=16), ['minmax']),
        (dict(bits=16, overrides={'fc': 8}), ['percentile', 'minmax']),
        (dict(overrides={'fc': 16}), ['percentile', 'minmax']),
        (dict(bits=dict(weight=16, activation=8)), ['percentile']),
        (dict(bits=4, overrides={'fc': 16}), ['mse']),
        (dict(overrides={'fc': 16}, observer='percentile'), ['percentile']),
        (dict(overrides={'fc': 16}, target='onnxruntime'), ['minmax']),
        (dict(overrides={'fc': 16}, mode='qat'), ['percentile']),
    ],
)
def test_fine_grids_have_an_observer_of_their_own(toy_net, images, quantize, observers):
    plan = make_plan(toy_net, images, **dict(dict(mode='ptq'), **quantize))
    keys = ('observer', 'fine_observer')
    assert [plan.config[key] for key in keys if key in plan.config] == observers
    said = next(line for line in summarize(plan).splitlines() if 'ranges' in line)
    assert all(name in said for name in observers)
    assert ('above 8 bits minmax' in said) == (len(observers) == 2)
    activations = quantize_model(toy_net, plan).activations
    is_wide = torch.tensor([spec.format.bits == 16 for spec in plan.activations])
    has_room = observers[-1] in ('minmax', 'mse')
    expected = torch.where(is_wide & has_room, 2.0, 1.0)
    assert torch.equal(activations._headroom, expected)

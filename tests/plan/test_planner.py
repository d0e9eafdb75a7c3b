import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyDetector, ToyHead, calibrated, make_plan

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.plan.plan import Plan


def conv(inputs=3, outputs=8):
    return nn.Conv2d(inputs, outputs, 1)


def chains(plan):
    """Sites of each chain, under the name of its head."""
    found = {}
    for name, step in plan.steps.items():
        found.setdefault(step.chain, []).append(name)
    return found


def activations(plan):
    return {spec.name: spec for spec in plan.activations}


def bits(plan, kind):
    return [spec.format.bits for spec in plan.activations if spec.kind == kind]


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8)


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


def test_operands_and_result_of_cat_share_one_scale(toy_net, images):
    steps = make_plan(toy_net, images).steps
    assert steps['/cat'].inputs == ('/add', '/add')
    assert steps['/cat'].output == steps['lateral/conv2d'].output == '/add'


def test_shared_scale_is_positive_only_if_all_of_it_is(toy_net, images):
    specs = activations(make_plan(toy_net, images))
    assert specs['stem/conv2d'].positive
    assert not specs['/add'].positive  # shared with `lateral`, through cat
    assert not specs['expand/conv2d'].positive


@pytest.mark.parametrize(
    'function',
    [
        lambda x: x.flatten(2).transpose(1, 2).reshape(1, 8, 8, 8),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1],
        lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
    ],
)
def test_elements_that_only_move_keep_their_quantizer(image, function):
    plan = make_plan(
        Forward(lambda net, x: net.two(function(net.one(x))), one=conv(), two=conv(8)),
        image,
    )
    assert list(activations(plan)) == ['/input', 'one/conv2d', 'two/conv2d']
    assert plan.steps['two/conv2d'].inputs == ('one/conv2d',)


def test_bilinear_resizing_makes_a_new_tensor(image):
    plan = make_plan(
        Forward(
            lambda net, x: F.interpolate(net.one(x), scale_factor=2, mode='bilinear'),
            one=conv(),
        ),
        image,
    )
    assert '/interpolate' in activations(plan)


def test_region_input_is_quantized_once(image):
    plan = make_plan(
        Forward(lambda net, x: net.one(x) + net.two(x), one=conv(), two=conv()), image
    )
    assert plan.inputs == {'': {0: '/input'}}
    assert plan.steps['one/conv2d'].inputs == ('/input',)
    assert plan.steps['two/conv2d'].inputs == ('/input',)


def test_tensor_that_enters_two_regions_is_quantized_for_both(image):
    class TwoBranches(ToyDetector):
        def forward(self, inputs, mode='tensor'):
            return self.backbone(inputs), self.second(inputs)

    model = TwoBranches()
    model.second = conv()
    plan = make_plan(model, image)
    assert set(plan.inputs) == {'backbone', 'second'}
    for call in ('backbone.conv/conv2d', 'second/conv2d'):
        assert plan.steps[call].inputs[0] is not None


def test_outputs_have_bits_of_their_own(image):
    quantize = dict(bits=dict(weight=4, activation=8, output=16))
    plan = make_plan(ToyDetector(), image, **quantize)
    assert bits(plan, 'output') == [16, 16]  # of the head's two levels
    assert set(bits(plan, 'activation')) == {8}
    assert bits(plan, 'input') == [8]
    assert {spec.format.bits for spec in plan.weights.values()} == {4}


def residual_net():
    """Two blocks: what the first one's addition gives, two layers and the next read."""

    def forward(net, x):
        x = F.relu(net.one(x))
        x = x + net.two(x)
        return net.head(x + net.four(F.relu(net.three(x))) + net.five(x))

    names = ('two', 'three', 'four', 'five', 'head')
    return Forward(forward, one=conv(), **{name: conv(8) for name in names})


SUMS = dict(bits=dict(weight=4, activation=4, sum=8))


def test_sums_have_bits_of_their_own_and_layers_multiply_narrow_ones(image):
    plan = make_plan(residual_net(), image, **SUMS)
    widths = {name: spec.format.bits for name, spec in activations(plan).items()}
    assert widths == {
        '/input': 8,
        'one/conv2d': 8,
        'two/conv2d': 8,
        '/add': 8,
        'three/conv2d': 4,
        'four/conv2d': 8,
        '/add#1': 8,
        'five/conv2d': 8,
        '/add#2': 8,
        'head/conv2d': 4,
        'one/conv2d:4bits': 4,
        '/add:4bits': 4,
        '/add#2:4bits': 4,
    }
    entries = {name: step.entries for name, step in plan.steps.items() if step.entries}
    assert entries == {
        'two/conv2d': ((0, 'one/conv2d:4bits'),),
        'three/conv2d': ((0, '/add:4bits'),),
        'five/conv2d': ((0, '/add:4bits'),),
        'head/conv2d': ((0, '/add#2:4bits'),),
    }
    assert plan.steps['two/conv2d'].inputs == ('one/conv2d:4bits',)
    assert plan.steps['/add'].inputs == ('one/conv2d', 'two/conv2d')
    # What is known of the sign of the wide one holds for the narrow one.
    positive = {name for name, spec in activations(plan).items() if spec.positive}
    assert positive == {'one/conv2d', 'one/conv2d:4bits', 'three/conv2d'}


def test_layers_of_other_widths_read_sums_in_theirs(image):
    overrides = {'five': 6, 'three': False, 'two': dict(activation=8)}
    plan = make_plan(residual_net(), image, overrides=overrides, **SUMS)
    entries = {name: step.entries for name, step in plan.steps.items() if step.entries}
    assert entries == {
        'five/conv2d': ((0, '/add:6bits'),),
        'head/conv2d': ((0, '/add#2:4bits'),),
    }


def test_layer_whose_result_stays_in_float_reads_sums_as_any_other(image):
    def forward(net, x):
        x = net.one(x)
        return net.act(net.two(x + net.three(x)))

    layers = dict(one=conv(), two=conv(8), three=conv(8), act=nn.ReLU())
    net, overrides = Forward(forward, **layers), {'act': False}
    plan = make_plan(net, image, overrides=overrides, **SUMS)
    assert plan.steps['two/conv2d'].entries == ((0, '/add:4bits'),)
    assert activations(plan)['/add:4bits'].format.bits == 4


def test_sums_as_wide_as_activations_change_nothing(image):
    narrow, same = (
        make_plan(residual_net(), image, bits=dict(weight=4, activation=8, **more))
        for more in ({}, dict(sum=8))
    )
    assert narrow.steps == same.steps
    formats = [
        {spec.name: spec.format for spec in plan.activations} for plan in (narrow, same)
    ]
    assert formats[0] == formats[1]


def test_tensor_that_another_region_reads_is_no_output(image):
    plan = make_plan(ToyDetector(), image)
    kinds = {spec.name: spec.kind for spec in plan.activations}
    assert kinds['backbone.conv/conv2d'] == 'activation'
    assert kinds['head.cls/conv2d'] == kinds['head.cls#1/conv2d'] == 'output'


def test_shared_head_has_one_weight_and_a_scale_for_each_level():
    levels = [torch.randn(1, 8, size, size) for size in (8, 4)]
    plan = make_plan(ToyHead(), levels)
    assert list(plan.weights) == ['tower', 'cls']
    assert [name for name in activations(plan) if 'cls' in name] == [
        'cls/conv2d',
        'cls#1/conv2d',
    ]


def test_override_with_a_width(toy_net, images):
    plan = make_plan(toy_net, images, overrides={'expand': 16, 'st*': 4})
    widths = {name: spec.format.bits for name, spec in plan.weights.items()}
    assert widths == dict(stem=4, conv=8, expand=16, lateral=8, fc=8)
    specs = activations(plan)
    assert specs['expand/conv2d'].format.bits == 16
    assert specs['stem/conv2d'].format.bits == 4
    assert specs['conv/conv2d'].format.bits == 8


def test_override_by_kind(toy_net, images):
    plan = make_plan(toy_net, images, overrides={'expand': dict(weight=4)})
    assert plan.weights['expand'].format.bits == 4
    assert activations(plan)['expand/conv2d'].format.bits == 8


def test_last_override_that_matches_wins(toy_net, images):
    plan = make_plan(toy_net, images, overrides={'*': 16, 'fc': 4})
    assert plan.weights['fc'].format.bits == 4
    assert plan.weights['conv'].format.bits == 16


def test_override_names_a_module_with_all_that_it_holds(image):
    plan = make_plan(ToyDetector(), image, overrides={'head': 4})
    widths = {name: spec.format.bits for name, spec in plan.weights.items()}
    assert widths == {'backbone.conv': 8, 'head.tower': 4, 'head.cls': 4}


def test_shared_scale_takes_the_widest_override(toy_net, images):
    plan = make_plan(toy_net, images, overrides={'lateral': 16})
    assert activations(plan)['/add'].format.bits == 16


def test_override_switches_off(image):
    net = Forward(
        lambda net, x: net.three(F.relu(net.two(net.one(x)))),
        one=conv(),
        two=conv(8),
        three=conv(8),
    )
    plan = make_plan(net, image, overrides={'two': False})
    assert list(plan.weights) == ['one', 'three']
    assert plan.in_float == {'two/conv2d': 'quantize.overrides'}
    # `three` is quantized, so its input is.
    assert plan.steps['three/conv2d'].inputs == ('two/conv2d',)
    plan = make_plan(net, image, overrides={'t*': False})
    assert list(activations(plan)) == ['/input', 'one/conv2d']
    assert list(plan.weights) == ['one']


@pytest.mark.parametrize('fused', ['stem_norm', 'act'])
def test_override_may_name_a_module_that_is_fused(toy_net, images, fused):
    assert make_plan(toy_net, images, overrides={fused: 8}) == make_plan(
        toy_net, images
    )


def test_layers_inside_an_opaque_function_are_not_passed_over_in_silence():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    net = Forward(
        lambda net, x: net.attention(x, x, x)[0] + net.one(x),
        attention=attention,
        one=nn.Linear(8, 8),
    )
    plan = make_plan(net.eval(), torch.randn(1, 5, 8))
    assert any('attention' in name for name in [*plan.weights, *plan.in_float])


def test_override_that_matches_nothing_names_the_nearest(toy_net, images):
    with pytest.raises(QuantizeError, match="'laterel'.*did you mean 'lateral'"):
        make_plan(toy_net, images, overrides={'laterel': 16})


def test_nothing_to_quantize_is_refused(image):
    net = Forward(lambda net, x: net.norm(x) + 1, norm=nn.BatchNorm2d(3))
    with pytest.raises(QuantizeError, match='nothing to quantize'):
        make_plan(net.eval(), image)


@pytest.mark.parametrize('target', ['jacinto', 'tidl', 'tensorrt'])
def test_plan_survives_json(toy_net, images, target):
    plan = make_plan(
        toy_net,
        images,
        target=target,
        bits=dict(weight=4, output=16),
        overrides={'expand': False, 'fc': 16},
        constrain_bias=False,
    )
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_plan_of_a_later_version_is_refused(toy_net, images):
    text = make_plan(toy_net, images).to_json()
    later = text.replace('"version":1', '"version":99')
    assert later != text
    with pytest.raises(QuantizeError, match='version 99.*update'):
        Plan.from_json(later)


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
    weights = make_plan(net, image, target='tidl').weights
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

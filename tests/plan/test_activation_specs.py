"""Which tensors have a quantizer, which share one, and how wide each is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyDetector, make_plan
from toy_plans import activations, conv


def bits(plan, kind):
    return [spec.format.bits for spec in plan.activations if spec.kind == kind]


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
    quantize = dict(bits=dict(weight=4, activation=8, output=16), edge_bits=4)
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


SUMS = dict(bits=dict(weight=4, activation=4, sum=8), edge_bits=4)


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
        'head/conv2d': 8,
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

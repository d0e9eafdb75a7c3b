"""Edges: which layers are first and last, and what they keep below 8 bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Forward, ToyDetector, make_plan

from mmquant_jacinto import QuantizeConfig, QuantizeError
from mmquant_jacinto.config.max_drop import Raised


def weights(plan):
    return {name: spec.format.bits for name, spec in plan.weights.items()}


def tensors(plan):
    return {spec.name: spec.format.bits for spec in plan.activations}


def chain_net():
    def forward(net, x):
        x = F.relu(net.two(F.relu(net.one(x))))
        return net.head(F.relu(net.three(x)))

    names = ('two', 'three', 'head')
    return Forward(
        forward,
        one=nn.Conv2d(3, 8, 3),
        **{name: nn.Conv2d(8, 8, 3) for name in names},
    )


def planned(net=None, **quantize):
    x = torch.randn(1, 3, 32, 32)
    return make_plan(net or chain_net(), x, target='onnxruntime', **quantize)


@pytest.mark.parametrize('bits', [4, dict(weight=4, activation=4)])
def test_first_and_last_layers_and_what_they_read_keep_8_bits(bits):
    plan = planned(bits=bits)
    assert weights(plan) == dict(one=8, two=4, three=4, head=8)
    assert tensors(plan) == {
        '/input': 8,
        'one/conv2d': 8,
        'two/conv2d': 4,
        'three/conv2d': 8,  # the last layer reads it
        'head/conv2d': 8,
    }


def test_4_bit_weights_alone_leave_the_tensors_as_they_are():
    plan = planned(bits=dict(weight=4, activation=8, output=16))
    assert weights(plan) == dict(one=8, two=4, three=4, head=8)
    assert set(tensors(plan).values()) == {8, 16}
    assert tensors(plan)['head/conv2d'] == 16


@pytest.mark.parametrize('bits', [8, 16, dict(weight=8, activation=16)])
def test_at_8_bits_and_more_nothing_is_an_edge(bits):
    assert planned(bits=bits).to_json() == planned(bits=bits, edge_bits=2).to_json()


def test_what_overrides_say_of_an_edge_stays():
    plan = planned(bits=4, overrides={'one': 5, 'head': dict(weight=3)})
    assert weights(plan) == dict(one=5, two=4, three=4, head=3)
    plan = planned(bits=4, edge_bits=6)
    assert weights(plan) == dict(one=6, two=4, three=4, head=6)
    assert set(weights(planned(bits=4, edge_bits=4)).values()) == {4}


def test_what_a_search_raises_of_an_edge_leaves_the_rest_of_it():
    raised = Raised(5.0, {'head/conv2d': dict(activation=16), 'two/conv2d': 16}, {})
    plan = planned(bits=4, max_drop=raised)
    assert weights(plan) == dict(one=8, two=16, three=4, head=8)
    assert tensors(plan)['head/conv2d'] == tensors(plan)['two/conv2d'] == 16


def test_what_layers_read_of_a_sum_is_raised_by_its_own_name():
    def forward(net, x):
        x = F.relu(net.one(x))
        x = x + net.two(x)
        return net.head(F.relu(net.three(x)))

    net = Forward(
        forward,
        one=nn.Conv2d(3, 8, 3, padding=1),
        **{name: nn.Conv2d(8, 8, 3, padding=1) for name in ('two', 'three', 'head')},
    )
    plan = planned(net, bits=4)
    assert plan.steps['three/conv2d'].inputs == ('/add:4bits',)
    layers = {'three/conv2d': dict(activation=16), '/add:4bits': dict(activation=8)}
    for name, value in layers.items():
        read = planned(net, bits=4, max_drop=Raised(5.0, {name: value}, {}))
        # Raising what a layer gives does not touch what it reads.
        expected = '/add:4bits' if name == 'three/conv2d' else '/add'
        assert read.steps['three/conv2d'].inputs == (expected,)
    with pytest.raises(QuantizeError, match='another model: this one has no call /sum'):
        planned(net, bits=4, max_drop=Raised(5.0, {'/sum:4bits': 8}, {}))


def test_all_of_a_heads_last_layers_are_last():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.cls, self.reg = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = F.relu(self.inner(F.relu(self.stem(x))))
            return self.cls(x), self.reg(x).exp()

    plan = planned(Head().eval(), bits=dict(weight=4, activation=8))
    assert weights(plan) == dict(stem=8, inner=4, cls=8, reg=8)


def test_a_network_of_first_and_last_layers_alone_has_the_width_asked_for():
    net = Forward(
        lambda net, x: net.head(F.relu(net.one(x))),
        one=nn.Conv2d(3, 8, 3),
        head=nn.Conv2d(8, 8, 3),
    )
    assert weights(planned(net, bits=4)) == dict(one=4, head=4)


def test_layers_between_regions_are_no_edges():
    plan = planned(ToyDetector(), bits=dict(weight=4, activation=8))
    found = weights(plan)
    assert found['backbone.conv'] == 8 or found['backbone.stem'] == 8
    assert {name: bits for name, bits in found.items() if name.startswith('head.')} == {
        name: 8 if 'cls' in name else 4 for name in found if name.startswith('head.')
    }


def mobile_net():
    """Weights of 216, 1152, 144 (depthwise), 2304, 2304 again and 1152 elements."""

    def forward(net, x):
        x = F.relu(net.depthwise(F.relu(net.expand(F.relu(net.stem(x))))))
        x = F.relu(net.dense(F.relu(net.dense(x))))
        return net.head(F.relu(net.project(x)))

    return Forward(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        expand=nn.Conv2d(8, 16, 3),
        depthwise=nn.Conv2d(16, 16, 3, groups=16),
        dense=nn.Conv2d(16, 16, 3),
        project=nn.Conv2d(16, 8, 3),
        head=nn.Conv2d(8, 8, 1),
    )


def narrow(plan):
    return sorted(name for name, bits in weights(plan).items() if bits == 4)


W4A8 = dict(weight=4, activation=8)


@pytest.mark.parametrize(
    'share, expected',
    [
        (0, ['dense', 'depthwise', 'expand', 'project']),
        (0.0286, ['dense', 'depthwise', 'expand', 'project']),
        # 144 of 5032: the weight of two calls counts once, the edges take no part.
        (0.0287, ['dense', 'expand', 'project']),
        (0.27, ['dense', 'project']),  # of two as light the first call
        (0.99, []),
        (1, []),
    ],
)
def test_the_lightest_layers_keep_8_bits_as_long_as_their_share_lasts(share, expected):
    assert narrow(planned(mobile_net(), bits=W4A8, light_share=share)) == expected


def test_a_depthwise_layer_keeps_8_bits_by_default_and_what_it_reads_does_not():
    plan = planned(mobile_net(), bits=4)
    assert narrow(plan) == ['dense', 'expand', 'project']
    read = plan.steps['depthwise/conv2d'].inputs[0]
    assert tensors(plan)[read] == 4
    assert tensors(plan)['depthwise/conv2d'] == 4


def test_the_last_but_one_layer_may_be_light_and_still_reads_4_bits():
    # What the head reads has 8 bits, and with it this layer's result, not its input.
    plan = planned(mobile_net(), bits=4, light_share=0.5)
    assert narrow(plan) == ['dense']
    read = plan.steps['project/conv2d'].inputs[0]
    assert tensors(plan)[read] == 4
    assert tensors(plan)['project/conv2d'] == 8


def test_what_is_said_of_a_light_layer_stays():
    overrides = {'depthwise': dict(weight=5)}
    plan = planned(mobile_net(), bits=W4A8, overrides=overrides)
    assert weights(plan)['depthwise'] == 5
    off = planned(mobile_net(), bits=W4A8, overrides={'depthwise': False})
    assert 'depthwise' not in weights(off)
    raised = Raised(5.0, {'depthwise/conv2d': dict(activation=16)}, {})
    plan = planned(mobile_net(), bits=W4A8, max_drop=raised)
    assert weights(plan)['depthwise'] == 8
    assert tensors(plan)['depthwise/conv2d'] == 16


@pytest.mark.parametrize(
    'quantize',
    [dict(bits=8), dict(bits=4, edge_bits=4), dict(bits=dict(weight=8, activation=4))],
)
def test_no_layer_is_light_where_weights_have_what_edges_have(quantize):
    plans = [
        planned(mobile_net(), light_share=share, **quantize).to_json()
        for share in (0, 1)
    ]
    assert plans[0] == plans[1]


def test_rows_of_packed_projections_count_by_themselves():
    def forward(net, x):
        x = net.stem(x)
        return net.head(net.attention(x, x, x)[0])

    net = Forward(
        forward,
        stem=nn.Linear(8, 8),
        attention=nn.MultiheadAttention(8, 2),
        head=nn.Linear(8, 8),
    )
    x = torch.randn(5, 1, 8)
    # Each of the three has 64 of 384 elements: two of them fit, and no third.
    plan = make_plan(net, x, target='onnxruntime', bits=W4A8, light_share=0.4)
    first, second, third = (
        f'attention.in_proj_weight[{i}:{i + 8}]' for i in (0, 8, 16)
    )
    found = weights(plan)
    assert [found[name] for name in (first, second, third)] == [8, 8, 4]
    assert found['attention.out_proj'] == 4


@pytest.mark.parametrize('value', [-0.1, 1.5, True, '5%', None, float('nan')])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(QuantizeError, match='quantize.light_share=.* is not a share'):
        QuantizeConfig(bits=4, light_share=value)


@pytest.mark.parametrize('value', [1, 17, True, '8', 8.0])
def test_what_is_no_width_is_refused(value):
    with pytest.raises(QuantizeError, match='quantize.edge_bits=.* is not a bit width'):
        QuantizeConfig(bits=4, edge_bits=value)

"""Which results an engine computes on without putting them on a grid."""

import json

import pytest
import torch
import torch.nn.functional as F
from smooth_functions import GATED, SPELLINGS, smooth_net
from torch import nn
from toy_models import Forward, make_plan
from toy_plans import activations, conv

from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.plan.summary import describe

FUSING = ('openvino', 'tensorrt')


@pytest.fixture
def x():
    return torch.randn(1, 3, 12, 12)


@pytest.mark.parametrize('target', FUSING)
@pytest.mark.parametrize('spelling', SPELLINGS)
def test_layer_and_function_have_one_grid(x, target, spelling):
    call, function = SPELLINGS[spelling]
    plan = make_plan(smooth_net(function), x, target=target)
    first, second = (name for name in plan.steps if name.split('#')[0].endswith(call))
    assert list(activations(plan)) == ['/input', first, second, 'last/conv2d']
    assert plan.steps['stem/conv2d'].joins == first
    assert plan.steps['depth/conv2d'].joins == second
    assert plan.steps['stem/conv2d'].output is None
    assert plan.steps['last/conv2d'].inputs == (second,)


@pytest.mark.parametrize('target', ['tidl', 'jacinto'])
@pytest.mark.parametrize('spelling', ['silu', 'x * sigmoid', 'sigmoid * x', 'mul_'])
def test_tidl_has_a_grid_in_front_and_none_inside(x, target, spelling):
    call, function = SPELLINGS[spelling]
    plan = make_plan(smooth_net(function), x, target=target)
    first, second = (name for name in plan.steps if name.split('#')[0].endswith(call))
    assert list(activations(plan)) == [
        *('/input', 'stem/conv2d', first, 'depth/conv2d', second, 'last/conv2d')
    ]
    assert plan.steps['stem/conv2d'].joins is None


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_onnxruntime_has_a_grid_behind_each_call(x, spelling):
    net = smooth_net(SPELLINGS[spelling][1])
    plan = make_plan(net, x, target='onnxruntime', scale_channels=False)
    assert all(step.joins is None for step in plan.steps.values())
    assert len(plan.activations) == (8 if spelling in GATED else 6)
    assert json.loads(plan.to_json())['version'] == 1
    assert 'joins' not in plan.to_json()


@pytest.mark.parametrize('target', FUSING)
@pytest.mark.parametrize(
    'forward',
    [
        lambda net, x: F.silu(y := net.one(x)) + y,
        lambda net, x: (y := net.one(x)) * y.sigmoid() + y,
        lambda net, x: (y := net.one(x), F.silu(y)),
        lambda net, x: F.silu(net.one(x).clamp(-1, 1)),
        lambda net, x: F.silu(F.max_pool2d(net.one(x), 2)),
    ],
    ids=['read', 'read beside a gate', 'leaves', 'clamped', 'moved'],
)
def test_layer_that_others_read_keeps_its_grid(x, target, forward):
    plan = make_plan(Forward(forward, one=conv()), x, target=target)
    assert 'one/conv2d' in activations(plan)
    assert plan.steps['one/conv2d'].joins is None


def test_gate_has_no_grid_where_its_operand_is_read_elsewhere(x):
    net = Forward(lambda net, x: (y := net.one(x)) * y.sigmoid() + y, one=conv())
    plan = make_plan(net, x, target='openvino')
    assert list(activations(plan)) == ['/input', 'one/conv2d', '/mul', '/add']
    assert plan.steps['/sigmoid'].joins == '/mul'


def test_gate_that_others_read_keeps_its_grid(x):
    net = Forward(lambda net, x: (y := net.one(x)) * (s := y.sigmoid()) + s, one=conv())
    plan = make_plan(net, x, target='openvino')
    assert list(activations(plan)) == [
        '/input',
        'one/conv2d',
        '/sigmoid',
        '/mul',
        '/add',
    ]


def test_gate_of_another_tensor_is_no_function(x):
    net = Forward(
        lambda net, x: net.one(x) * net.two(x).sigmoid(), one=conv(), two=conv()
    )
    names = activations(make_plan(net, x, target='tensorrt'))
    assert list(names) == ['/input', 'one/conv2d', 'two/conv2d', '/sigmoid', '/mul']


@pytest.mark.parametrize('target, has_grid', [('openvino', False), ('tensorrt', True)])
def test_function_behind_an_addition(x, target, has_grid):
    net = Forward(
        lambda net, x: F.silu(net.one(x) + net.two(x)), one=conv(), two=conv()
    )
    assert ('/add' in activations(make_plan(net, x, target=target))) == has_grid


def test_shared_activation_of_several_levels(x):
    def forward(net, x):
        levels = [x, F.max_pool2d(x, 2)]
        return [net.cls(net.act(net.tower(level))) for level in levels]

    net = Forward(forward, tower=conv(), act=nn.SiLU(), cls=conv(8))
    plan = make_plan(net, x, target='openvino')
    assert plan.steps['tower/conv2d'].joins == 'act/silu'
    assert plan.steps['tower#1/conv2d'].joins == 'act#1/silu'
    assert {'act/silu', 'act#1/silu'} < set(activations(plan))


@pytest.mark.parametrize('off', ['one', 'act'])
def test_module_that_is_off_is_one_with_nothing(x, off):
    net = Forward(lambda net, x: net.two(net.act(net.one(x))), one=conv(), two=conv(8))
    net.act = nn.SiLU()
    plan = make_plan(net, x, target='openvino', overrides={off: False})
    assert plan.steps['one/conv2d'].joins is None


@pytest.mark.parametrize(
    'target, given',
    [
        ('openvino', ['/input', 'act#1/silu', 'last/conv2d']),
        ('tensorrt', ['/input', 'act#1/silu', 'last/conv2d']),
        # Its layers give integers alone.
        ('onnxruntime', None),
    ],
)
def test_float_layers_read_real_numbers_where_layers_give_them(x, target, given):
    net = Forward(
        lambda net, x: net.last(net.act(net.two(net.act(net.one(x))))),
        one=conv(),
        two=conv(8),
        act=nn.SiLU(),
        last=conv(8),
    )
    plan = make_plan(net, x, target=target, overrides={'two': False})
    if given is None:
        assert {'act/silu', 'two/conv2d'} < set(activations(plan))
    else:
        assert list(activations(plan)) == given


def test_what_a_quantized_layer_reads_beside_a_float_one_keeps_its_grid(x):
    net = Forward(
        lambda net, x: (net.two(y := net.act(net.one(x))), net.three(y)),
        one=conv(),
        two=conv(8),
        three=conv(8),
        act=nn.SiLU(),
    )
    plan = make_plan(net, x, target='openvino', overrides={'two': False})
    assert 'act/silu' in activations(plan)


def test_width_of_a_layer_is_that_of_the_function_behind(x):
    net = Forward(lambda net, x: net.two(net.act(net.one(x))), one=conv(), two=conv(8))
    net.act = nn.SiLU()
    plan = make_plan(net, x, target='openvino', overrides={'one': 6})
    assert activations(plan)['act/silu'].format.bits == 6
    both = make_plan(net, x, target='openvino', overrides={'one': 6, 'act': 7})
    assert activations(both)['act/silu'].format.bits == 7


def test_plan_with_open_results_survives_json(x):
    plan = make_plan(smooth_net(F.silu), x, target='openvino')
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert json.loads(plan.to_json())['version'] == 3


def test_description_says_what_is_one(x):
    text = describe(make_plan(smooth_net(F.silu), x, target='openvino'))
    assert 'norm/batch_norm  norm  fused into stem/conv2d  one with /silu\n' in text


def test_what_a_logarithm_reads_opens_no_layer(x):
    net = Forward(lambda net, x: net.one(x).sigmoid().log(), one=conv())
    plan = make_plan(net, x, target='openvino')
    assert plan.steps['one/conv2d'].joins is None
    assert 'one/conv2d' in activations(plan)


OVERWRITING = {
    'block': (lambda net, x: net.last(net.b(net.act(net.a(x))) + x), True),
    'block, then relu': (
        lambda net, x: F.relu(net.b(net.act(net.a(x))) + x) * 2.0,
        True,
    ),
    'what is read behind it too': (
        lambda net, x: (net.last(net.b(net.act(net.a(x))) + x), net.last(x)),
        False,
    ),
    'what leaves': (lambda net, x: (net.last(net.b(net.a(x)) + x), x), False),
    'what the layer reads': (lambda net, x: net.last(net.b(x) + x), False),
    'what it reads through nothing': (
        lambda net, x: net.last(net.b(x.contiguous()) + x),
        False,
    ),
    # The engine sees by itself that nobody else needs it.
    'another layer': (lambda net, x: net.last(net.b(x) + net.a(x)), False),
    'a number': (lambda net, x: net.last(net.b(net.a(x)) + 1), False),
    'one number for all': (
        lambda net, x: net.last(net.b(net.a(x)) + x.mean((2, 3), keepdim=True)),
        False,
    ),
}


@pytest.mark.parametrize('target', FUSING)
@pytest.mark.parametrize('name', OVERWRITING)
def test_sums_that_openvino_computes_in_the_other_operands_memory(x, target, name):
    forward, overwrites = OVERWRITING[name]
    net = Forward(
        lambda net, x: forward(net, F.relu(net.stem(x))),
        stem=conv(3, 4),
        a=conv(4, 4),
        b=conv(4, 4),
        last=conv(4, 2),
        act=nn.ReLU6(),
    )
    plan = make_plan(net, x, target=target)
    found = {site for site, step in plan.steps.items() if step.overwrites}
    assert found == ({'/add'} if overwrites and target == 'openvino' else set())
    assert Plan.from_json(plan.to_json()) == plan

"""Which calls a pattern of ``overrides`` reaches, and what it makes of them."""

import pytest
import torch.nn.functional as F
from toy_models import Forward, ToyDetector, make_plan
from toy_plans import activations, conv

from mmquant_jacinto import QuantizeError


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


def test_override_that_matches_nothing_names_the_nearest(toy_net, images):
    with pytest.raises(QuantizeError, match="'laterel'.*did you mean 'lateral'"):
        make_plan(toy_net, images, overrides={'laterel': 16})

"""What a search for a budget raises: single calls, by the names of their sites."""

import pytest
import torch
from torch import nn
from toy_models import ToyBackbone, ToyHead, make_plan
from toy_plans import activations

from mmquant_jacinto import QuantizeError
from mmquant_jacinto.config.max_drop import MaxDrop, Raised
from mmquant_jacinto.plan.plan import Plan
from mmquant_jacinto.plan.planned_widths import widest
from mmquant_jacinto.targets.target import get_target

BUDGET = MaxDrop(1.0)


def raised(net, image, layers, **quantize):
    return make_plan(net, image, max_drop=Raised(BUDGET, layers), **quantize)


def test_one_call_is_raised_and_no_other_of_its_module(toy_net, images):
    # The addition is a call of the whole network, which an override would raise.
    plan = raised(toy_net, images, {'/add': 16})
    assert activations(plan)['/add'].format.bits == 16
    assert {spec.format.bits for spec in plan.weights.values()} == {8}
    assert activations(plan)['stem/conv2d'].format.bits == 8


def test_a_kind_and_an_input_are_raised_alone(toy_net, images):
    plan = raised(toy_net, images, {'conv/conv2d': {'weight': 16}, '/input': 16})
    widths = {name: spec.format.bits for name, spec in plan.weights.items()}
    assert widths == dict(stem=8, conv=16, expand=8, lateral=8, fc=8)
    specs = activations(plan)
    assert specs['/input'].format.bits == 16
    assert specs['conv/conv2d'].format.bits == 8


def test_an_input_is_raised_as_an_activation_too(toy_net, images):
    # As both searches name what they raise of it.
    plan = raised(toy_net, images, {'/input': {'activation': 16}})
    assert activations(plan)['/input'].format.bits == 16
    assert {spec.format.bits for spec in plan.specs} == {8, 16}


def test_float_is_a_call_that_is_not_quantized(toy_net, images):
    plan = raised(toy_net, images, {'expand/conv2d': False})
    assert 'expand' not in plan.weights and list(plan.in_float) == ['expand/conv2d']


def test_overrides_win(toy_net, images):
    layers = {'conv/conv2d': 16, 'expand/conv2d': 16}
    plan = raised(toy_net, images, layers, overrides={'conv': 4})
    widths = {name: spec.format.bits for name, spec in plan.weights.items()}
    assert widths == dict(stem=8, conv=4, expand=16, lateral=8, fc=8)


class Pyramid(nn.Module):
    """Two levels that one head sees."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = ToyBackbone(), ToyHead()

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.mark.parametrize('run', ['', '#1'])
def test_a_weight_is_as_wide_as_any_of_its_calls(run):
    image = torch.randn(1, 3, 8, 8)
    plan = make_plan(Pyramid(), image)
    names = [name for name, step in plan.steps.items() if step.weight == 'head.cls']
    assert len(names) == 2
    plan = raised(Pyramid(), image, {names[bool(run)]: 16})
    assert plan.weights['head.cls'].format.bits == 16


def test_the_plan_knows_its_budget_and_survives_json(toy_net, images):
    plan = raised(toy_net, images, {'conv/conv2d': 16}, mode='ptq')
    start = make_plan(toy_net, images, mode='ptq', max_drop=BUDGET)
    assert plan.config['max_drop'] == BUDGET.to_dict() == start.config['max_drop']
    again = Plan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert again.keeps_budget_of(start)
    other = make_plan(toy_net, images, mode='ptq', max_drop=2.0)
    assert not plan.keeps_budget_of(other)
    assert not make_plan(toy_net, images).keeps_budget_of(make_plan(toy_net, images))


def test_calls_of_another_model_are_refused(toy_net, images):
    with pytest.raises(QuantizeError, match='has no call neck/add'):
        raised(toy_net, images, {'neck/add': 16})


@pytest.mark.parametrize(
    'target, most',
    [
        ('jacinto', dict(activation=16, weight=16)),
        ('onnxruntime', dict(activation=16, weight=16)),
        ('tidl', dict(activation=8, weight=8)),
    ],
)
def test_widest_is_what_the_engine_has_integers_of(target, most):
    assert widest(get_target(target).rules) == most

"""What only the loss calls stays in float, unless it is asked for."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmquant_jacinto import QuantizeConfig, QuantTrainModule, plan_model
from mmquant_jacinto.plan.summary import summarize


class Net(BaseModel):
    """The loss compares a prediction with that for what another module makes."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, 1)
        self.project = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(inputs)
        if mode != 'loss':
            return [self.head(x)]
        return dict(loss=(self.head(x) - self.head(self.project(x))).square().mean())


IMAGE = torch.randn(2, 3, 8, 8)


def planned(**overrides):
    model = Net()
    passes = [lambda mode=mode: model(IMAGE, mode=mode) for mode in ('predict', 'loss')]
    return plan_model(model, passes, QuantizeConfig(overrides=overrides))


def test_it_is_named_among_what_stays_in_float():
    plan = planned()
    assert plan.regions == ('backbone', 'head')
    assert list(plan.weights) == ['backbone', 'head']
    assert 'project' in plan.in_float
    assert 'project: only the loss calls it' in summarize(plan)
    assert "quantize.overrides={'project': 8}" in plan.in_float['project']


def test_what_it_makes_enters_the_network_as_an_input():
    plan = planned()
    assert plan.inputs['head#1'] == {0: 'head#1/input'}
    assert plan.steps['head#1/conv2d'].inputs == ('head#1/input',)


def test_overrides_switch_it_on():
    plan = planned(project=4)
    assert plan.regions == ('backbone', 'head', 'project')
    assert plan.weights['project'].format.bits == 4
    assert plan.inputs.keys() == {'backbone'}
    assert 'project' not in plan.in_float


def test_overrides_may_name_it_to_leave_it_in_float():
    assert planned(project=False).regions == ('backbone', 'head')


@pytest.mark.parametrize('overrides', [{}, {'project': 8}])
def test_it_trains(overrides):
    wrapper = QuantTrainModule(
        Net(),
        dummy_input=dict(inputs=IMAGE),
        target='onnxruntime',
        overrides=overrides,
    )
    wrapper.train()
    for _ in range(2):
        wrapper(inputs=IMAGE, mode='loss')['loss'].backward()
    assert wrapper.module.project.weight.grad.abs().sum() > 0
    assert wrapper.quantization.activations.missing() == []
    wrapper.eval()
    with torch.no_grad():
        assert wrapper(inputs=IMAGE, mode='predict')[0].isfinite().all()

"""What only the loss calls is told from what a prediction without detections leaves."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import nn
from toy_models import ToyBackbone

from mmquant_jacinto import QuantizeConfig, plan_model
from mmquant_jacinto.record.recorder import record
from mmquant_jacinto.wrappers.prepare import is_region


class Weights(nn.Module):
    """Learned weights of losses."""

    def __init__(self):
        super().__init__()
        self.logs = nn.Parameter(torch.zeros(2))

    def forward(self, *losses):
        return (torch.exp(-self.logs) * torch.stack(losses) + self.logs).sum()


class SecondStage(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.mask = nn.Conv2d(8, 2, 1)
        for name, value in settings.items():
            setattr(self, name, value)

    def predict(self, x):
        threshold = getattr(self, 'score_thr', None)
        if threshold is None:
            threshold = self.test_cfg.rcnn.score_thr
        if getattr(self, 'fails', False) and threshold < 0:
            raise ValueError('a threshold has to be positive')
        return [self.mask(x)] if 0.01 > threshold else []


class Detector(BaseModel):
    def __init__(self, second):
        super().__init__()
        self.backbone = ToyBackbone()
        self.second = second
        self.auxiliary = nn.Conv2d(8, 2, 1)
        self.weights = Weights()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(inputs)[0]
        if mode != 'loss':
            return self.second.predict(x)
        losses = [
            part(x).square().mean() for part in (self.second.mask, self.auxiliary)
        ]
        return dict(loss=self.weights(*losses))


SETTINGS = [
    dict(score_thr=0.05),
    dict(test_cfg=ConfigDict(rcnn=dict(score_thr=0.05, max_per_img=100))),
]
IMAGE = torch.randn(2, 3, 8, 8)


def passes(model, call=None):
    call = call or (lambda mode: model(IMAGE, mode=mode))
    return [lambda: call('predict'), lambda: call('loss')]


@pytest.mark.parametrize('settings', SETTINGS)
def test_a_head_behind_detections_is_part_of_the_network(settings):
    model = Detector(SecondStage(**settings))
    before = dict(vars(model.second))
    plan = plan_model(model, passes(model), QuantizeConfig())
    assert plan.regions == ('backbone', 'second.mask')
    assert plan.in_float.keys() == {'auxiliary', 'weights'}
    assert all('only the loss calls it' in why for why in plan.in_float.values())
    assert vars(model.second) == before
    for name, value in settings.items():
        assert getattr(model.second, name) is value


def test_a_prediction_that_cannot_find_everything_keeps_what_may_predict():
    model = Detector(SecondStage(score_thr=0.05, fails=True))
    plan = plan_model(model, passes(model), QuantizeConfig())
    assert plan.regions == ('backbone', 'second.mask')


@pytest.mark.parametrize(
    'call',
    [
        lambda model, mode: model(IMAGE, None, mode),
        lambda model, mode: model(inputs=IMAGE, mode=mode),
    ],
)
def test_a_pass_says_by_its_mode_that_it_computes_the_loss(call):
    model = Detector(SecondStage(score_thr=0.0))
    graph = record(model, passes(model, lambda mode: call(model, mode)), is_region)
    assert graph.only_loss == ('auxiliary', 'weights')


def test_without_a_prediction_nothing_is_known_of_inference():
    model = Detector(SecondStage(score_thr=0.0))
    graph = record(model, passes(model)[1:], is_region)
    assert graph.only_loss == ()


def test_a_student_whose_teacher_predicts_is_a_network():
    class Semi(BaseModel):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = (
                Detector(SecondStage(score_thr=0.0)) for _ in range(2)
            )

        def forward(self, inputs, mode='tensor'):
            part = self.student if mode == 'loss' else self.teacher
            return part(inputs, mode=mode)

    model = Semi()
    graph = record(model, passes(model), is_region)
    assert {'student.backbone', 'student.second.mask'} <= set(graph.regions)
    assert not any(name.startswith('student.b') for name in graph.only_loss)

"""What preparation sees of a model's training."""

import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import nn

from mmquant_jacinto import QuantizeConfig, plan_model
from mmquant_jacinto.wrappers.prepare import probe_passes


class TrainsOtherwise(BaseModel):
    """A model whose loss wants what only a training gives, as MMYOLO's do.

    Its preprocessor takes stacked batches in training alone, and its head gives one
    output more there.
    """

    def __init__(self, breaks=False):
        super().__init__(data_preprocessor=StacksInTraining())
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.extra = nn.Conv2d(4, 2, 1)
        self.drop = nn.Dropout(0.5)
        self.head = SplitHead(self.extra)
        self.breaks = breaks

    def forward(self, inputs, labels=None, mode='tensor'):
        x = self.drop(self.norm(self.conv(inputs)))
        outputs = self.head(x)
        if mode != 'loss':
            return [outputs]
        if self.breaks:
            raise ValueError('no ground truth')
        scores, more = outputs
        return dict(loss=scores.mean() + more.mean())


class SplitHead(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.scores = nn.Conv2d(4, 2, 1)
        self.extra = extra

    def forward(self, x):
        return (self.scores(x), self.extra(x)) if self.training else self.scores(x)


class StacksInTraining(nn.Module):
    def forward(self, data, training=False):
        if training:
            assert MessageHub.get_current_instance().get_info('iter') is not None
            return dict(inputs=data['inputs'], labels=data['labels'])
        return dict(inputs=torch.stack(data['inputs']))


def test_loss_is_seen_as_a_training_computes_it():
    model = TrainsOtherwise().train()
    image = torch.rand(1, 3, 8, 8)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    predict, training = dict(inputs=list(image)), dict(inputs=image, labels=None)
    passes = probe_passes(model, predict, training)
    plan = plan_model(model, passes, QuantizeConfig())
    assert {'conv', 'extra', 'head.scores'} == set(plan.weights)
    assert len(passes) == 2
    assert model.training and model.norm.training and model.drop.training
    assert all(torch.equal(state[n], v) for n, v in model.state_dict().items())


def test_batch_without_ground_truth_is_no_pass():
    model = TrainsOtherwise(breaks=True)
    image = torch.rand(1, 3, 8, 8)
    passes = probe_passes(model, dict(inputs=list(image)), dict(inputs=list(image)))
    assert len(passes) == 1

"""Models and inputs that cannot be prepared are refused in one sentence."""

import pytest
import torch
from refusals import refused
from torch import nn

from mmquant_jacinto import QuantCalibrateModule, QuantTestModule, QuantTrainModule


def net(inner=None):
    inner = nn.ReLU() if inner is None else inner
    return nn.Sequential(nn.Conv2d(3, 8, 3), inner, nn.Conv2d(8, 4, 1)).eval()


X = torch.zeros(1, 3, 16, 16)
COMPILED = {
    'scripted layer': (lambda: net(torch.jit.script(nn.Conv2d(8, 8, 1))), '1 was'),
    'scripted function': (lambda: net(torch.jit.script(nn.ReLU())), '1 was'),
    'traced': (lambda: net(torch.jit.trace(nn.ReLU(), X)), '1 was made by torch.jit'),
    'all scripted': (lambda: torch.jit.script(net()), 'the model was made by torch'),
    'compiled': (lambda: net(torch.compile(nn.Conv2d(8, 8, 1))), '1 was made by'),
}


@pytest.mark.parametrize('kind', COMPILED)
def test_what_hides_its_calls_is_refused(kind):
    make, words = COMPILED[kind]
    message = refused(lambda: QuantTrainModule(make(), X), words, 'it was made from')
    assert ('torch.compile' if kind == 'compiled' else 'torch.jit') in message


@pytest.mark.parametrize('model', [None, 'net.pth', [net()]])
def test_model_that_is_no_module(model):
    refused(lambda: QuantTrainModule(model, X), type(model).__name__, 'nn.Module')


@pytest.mark.parametrize(
    'given, words',
    [
        (X[:, :1], ('float32 (1, 1, 16, 16)', '3 channels')),
        (X[0, 0], ('float32 (16, 16)',)),
        (X.double(), ('float64 (1, 3, 16, 16)',)),
        (dict(image=X), ('float32 (1, 3, 16, 16)', 'got (dict')),
        ((X, X), ('TypeError', 'got (tuple')),
        ('image.jpg', ('dummy_input is a str', '(N, C, H, W)')),
    ],
)
def test_input_that_the_model_does_not_take(given, words):
    refused(lambda: QuantCalibrateModule(net(), given), *words)


def test_error_of_the_model_itself_stays_known():
    with pytest.raises(ValueError) as caught:
        QuantCalibrateModule(net(), X[:, :1])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_other_wrong_arguments():
    refused(lambda: QuantTrainModule(nn.ReLU(), X), 'nothing to quantize')
    refused(lambda: QuantTrainModule(net(), X, total_epochs='12'), "total_epochs='12'")
    refused(lambda: QuantTrainModule(net(), X, config=dict(bit=4)), "mean 'bits'")


def test_plan_that_is_no_json():
    state = {**net().state_dict(), 'quantization.plan': torch.zeros(5).byte()}
    wrapper = QuantTestModule(net())
    refused(
        lambda: wrapper.module.load_state_dict(state, strict=False),
        'the plan in the checkpoint is no JSON',
    )

"""Modules of a float model that a hook replaces before it runs."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from torch import nn

from mmquant_jacinto.wrappers.surgery import replacements


class Wrapped(MMDistributedDataParallel):
    """A wrapper as MMEngine knows it, without processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize('wrap', [lambda model: model, Wrapped])
def test_float_model_is_changed_before_a_run_and_keeps_its_parameters(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.MaxPool2d(5, 1, 2))
    parameters, names = list(model.parameters()), list(model.state_dict())
    hook = HOOKS.build(dict(type='SurgeryHook'))
    runner = SimpleNamespace(model=wrap(model))
    for _ in range(2):  # a test after a training
        hook.before_run(runner)
        assert isinstance(model[1], nn.ReLU)
        assert not replacements(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert list(model.state_dict()) == names

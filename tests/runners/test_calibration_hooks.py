"""Hooks that want a training, in a calibration."""

import pytest
from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.registry import HOOKS
from toy_runner import PTQ, log_of, make_config, train

from mmquant_jacinto.runners.calibration_hooks import NeedsOptimizer, NoOptimizer


@HOOKS.register_module()
class WarmupHook(ParamSchedulerHook):
    """A schedule as MMYOLO writes it."""

    def before_train(self, runner):
        for group in runner.optim_wrapper.optimizer.param_groups:
            group.setdefault('initial_lr', group['lr'])


@HOOKS.register_module()
class CountPlacesHook(Hook):
    """Needs nothing, and has a place of its own."""

    places: list[str] = []

    def before_train(self, runner):
        self.places.append('before_train')

    def after_val_epoch(self, runner, metrics=None):
        self.places.append('after_val_epoch')


@HOOKS.register_module()
class BrokenHook(Hook):
    def before_train(self, runner):
        runner.optim_wrapped  # noqa: B018


def test_schedule_that_is_a_hook_is_taken_off(tmp_path):
    hooks = [dict(type='WarmupHook'), dict(type='CountPlacesHook')]
    CountPlacesHook.places.clear()
    runner = train(make_config(tmp_path, PTQ, custom_hooks=hooks))
    assert (tmp_path / 'epoch_1.pth').exists()
    kinds = [type(hook) for hook in runner.hooks]
    assert WarmupHook not in kinds and CountPlacesHook in kinds
    assert 'WarmupHook, which asks for the optimizer, is off' in log_of(tmp_path)
    assert CountPlacesHook.places == ['before_train', 'after_val_epoch']


def test_other_errors_of_a_hook_are_its_own(tmp_path):
    cfg = make_config(tmp_path, PTQ, custom_hooks=[dict(type='BrokenHook')])
    with pytest.raises(AttributeError, match='optim_wrapped'):
        train(cfg)


def test_what_stands_for_the_optimizer_gives_nothing():
    nothing = NoOptimizer()
    with pytest.raises(NeedsOptimizer, match='param_groups'):
        nothing.param_groups  # noqa: B018
    with pytest.raises(NeedsOptimizer, match='generator'):
        nothing['generator']
    assert not hasattr(nothing, 'param_groups')

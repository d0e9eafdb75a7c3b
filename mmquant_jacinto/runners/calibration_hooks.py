"""Hooks during a calibration: those that need a training are taken off."""

from typing import Any, NoReturn

from mmengine.hooks import EMAHook, Hook, ProfilerHook


class NeedsOptimizer(AttributeError):
    """Something asked for the optimizer of a runner that calibrates."""


class NoOptimizer:
    """In the place of a runner's optimizer while it calibrates."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NeedsOptimizer(f'a calibration has no optimizer, so no {name!r} of one')

    def __getitem__(self, name: str) -> NoReturn:
        raise NeedsOptimizer(f'a calibration has no optimizer, so no {name!r}')


def be_without_training(runner: Any) -> None:
    """Takes the optimizer off a runner, and the hooks that work on training steps.

    Args:
        runner (Runner): About to calibrate.
    """
    runner.optim_wrapper = NoOptimizer()
    for hook in list(runner.hooks):
        if isinstance(hook, (EMAHook, ProfilerHook)):
            _take_off(runner, hook, '')


def call_without_optimizer(runner: Any, fn_name: str, kwargs: dict[str, Any]) -> None:
    """Calls the hooks of a calibration.

    Schedulers may be hooks (MMYOLO's), and whoever asks for the optimizer has nothing
    to do here: it is taken off the runner.

    Args:
        runner (Runner): Its ``optim_wrapper`` is a :class:`NoOptimizer`.
        fn_name (str): The place, such as ``'before_train'``.
        kwargs (dict): What the hooks are given besides the runner.
    """
    for hook in list(runner.hooks):
        # A hook may have places of its own, which the others lack.
        call = getattr(hook, fn_name, None)
        if call is None:
            continue
        try:
            call(runner, **kwargs)
        except NeedsOptimizer:
            _take_off(runner, hook, ', which asks for the optimizer,')


def _take_off(runner: Any, hook: Hook, reason: str) -> None:
    runner.hooks.remove(hook)
    runner.logger.info(
        f'Calibration does not train: {type(hook).__name__}{reason} is off.'
    )

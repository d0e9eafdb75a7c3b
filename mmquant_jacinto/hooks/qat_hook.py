"""When statistics freeze during quantization aware training."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from mmengine.dist import all_reduce_params, is_distributed
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .gradients import clip_gradients

DATA_BATCH = Optional[Union[dict, tuple, list]]
# The schedule of the original is in epochs, and its trainings have twelve.
EPOCHS_OF_ITERATIONS = 12


@HOOKS.register_module()
class QATHook(Hook):
    """Freezes batch normalization and ranges, and logs the ranges.

    ``quantize.freeze`` says when; by default the statistics of batch
    normalization freeze one epoch before the middle of the training, and activation
    ranges one epoch after it; where the float model teaches, both at its start. In an
    iteration-based training a twelfth of it counts as an epoch. On several
    processes, statistics of batch normalization are averaged before they are frozen,
    validated or saved, because weights are quantized as folded with them.
    ``QuantRunner`` registers this hook by itself.

    Args:
        interval (int): Iterations between two writings of the ranges to the
            visualizer, in an iteration-based loop; an epoch-based one writes
            them after each epoch. Defaults to 500.

    Examples:
        >>> custom_hooks = [dict(type='QATHook', interval=100)]
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 500) -> None:
        self.interval = interval
        self.frozen: list[str] = []  # what a report says of it

    def before_train(self, runner: Runner) -> None:
        """Finds what the training starts from."""
        fake_quants = runner.model.quantization.fake_quants
        if fake_quants is not None and _averaged(runner):
            fake_quants.check_averaged()
        runner.start_teaching()
        runner.measure_start()
        model = runner.model

        def clip(*step: Any) -> None:
            if model.bn_frozen:
                clip_gradients(list(model.quantization.layers.values()))

        for optimizer in optimizers_of(runner.optim_wrapper):
            optimizer.register_step_pre_hook(clip)

    def before_train_epoch(self, runner: Runner) -> None:
        """Freezes by epochs."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._freeze(runner, runner.epoch, runner.max_epochs, 1, 'epoch')

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Freezes by iterations."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            unit = max(1, runner.max_iters // EPOCHS_OF_ITERATIONS)
            if self._freeze(runner, runner.iter, runner.max_iters, unit, 'iteration'):
                self._share_statistics(runner)
                # The loop has set the training flags already.
                runner.model.train()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Prepares for a checkpoint, and writes ranges, in an iteration-based loop."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        if any(
            isinstance(hook, CheckpointHook)
            and not hook.by_epoch
            and (
                self.every_n_train_iters(runner, hook.interval)
                or (hook.save_last and self.is_last_train_iter(runner))
            )
            for hook in runner.hooks
        ):
            self._share_statistics(runner)
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Prepares for a checkpoint, and writes ranges, after each epoch."""
        self._share_statistics(runner)
        self._report(runner, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Checks that there is something to validate with, the same everywhere."""
        runner.model.check_ranges()
        self._share_statistics(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Checks that there is something to test with."""
        runner.model.check_ranges()

    def _share_statistics(self, runner: Runner) -> None:
        if not is_distributed():
            return
        statistics = [
            buffer
            for model in (runner.model, *_averaged(runner))
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        all_reduce_params(statistics, op='mean')

    def _freeze(
        self, runner: Runner, position: int, total: int, unit: int, counted: str
    ) -> Sequence[str]:
        changed = runner.model.set_epoch(position, total, unit)
        names = dict(bn='statistics of batch normalization', ranges='activation ranges')
        for name in changed:
            self.frozen.append(
                f'{names[name]} frozen from {counted} {position + 1} of {total} on.'
            )
            runner.logger.info(f'Quantization: {self.frozen[-1]}')
        return changed

    def _report(self, runner: Runner, step: int) -> None:
        activations = runner.model.quantization.activations
        runner.visualizer.add_scalars(activations.scalars(), step=step)
        rejected = activations.take_rejected()
        if rejected:
            runner.logger.warning(
                'Quantization: NaN or infinity was left out of the ranges of '
                + ', '.join(rejected)
            )


def optimizers_of(optim_wrapper: Any) -> list[torch.optim.Optimizer]:
    """Torch's optimizers of a wrapper, or of several by name."""
    wrappers = getattr(optim_wrapper, 'optim_wrappers', None)
    parts = [optim_wrapper] if wrappers is None else list(wrappers.values())
    return [part.optimizer for part in parts]


def _averaged(runner: Runner) -> list[nn.Module]:
    return [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]

"""When statistics freeze during quantization aware training."""

from collections.abc import Sequence
from typing import Optional, Union

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

DATA_BATCH = Optional[Union[dict, tuple, list]]
# The schedule of the original is in epochs, and its trainings have twelve.
EPOCHS_OF_ITERATIONS = 12


@HOOKS.register_module()
class QATHook(Hook):
    """Freezes batch normalization and ranges, and logs the ranges.

    ``quantize.freeze`` says when; by default the statistics of batch
    normalization freeze one epoch before the middle of the training, and
    activation ranges one epoch after it. In an iteration-based training a
    twelfth of it counts as an epoch. ``QuantRunner`` registers this hook by
    itself.

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
                # The loop has set the training flags already.
                runner.model.train()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Writes ranges in an iteration-based loop."""
        if isinstance(
            runner.train_loop, IterBasedTrainLoop
        ) and self.every_n_train_iters(runner, self.interval):
            self._report(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Writes ranges after each epoch."""
        self._report(runner, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Checks that there is something to validate with."""
        runner.model.check_ranges()

    def before_test_epoch(self, runner: Runner) -> None:
        """Checks that there is something to test with."""
        runner.model.check_ranges()

    def _freeze(
        self, runner: Runner, position: int, total: int, unit: int, counted: str
    ) -> Sequence[str]:
        changed = runner.model.set_epoch(position, total, unit)
        names = dict(bn='statistics of batch normalization', ranges='activation ranges')
        for name in changed:
            runner.logger.info(
                f'Quantization: {names[name]} frozen from {counted} '
                f'{position + 1} of {total} on.'
            )
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

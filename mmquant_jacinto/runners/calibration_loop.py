"""Calibration as a loop of MMEngine's runner."""

from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from ..config import Calibration
from ..errors import QuantizeError
from .sampling import calibration_dataloader, count_batches

CHECKPOINT = 'epoch_1.pth'


@LOOPS.register_module()
class CalibrationLoop(BaseLoop):
    """Calibrates a float model; no backward pass, no optimizer step.

    A float pass over the images measures the ranges and each layer's mean
    output, then ``epochs`` quantized passes over the same images correct the
    biases. Afterwards it saves ``epoch_1.pth`` and validates. ``QuantRunner``
    uses this loop for ``quantize.mode='ptq'``. Several processes share the
    images, and end with the same state.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict, optional): Where the images come from.
            Defaults to ``quantize.calibration.dataloader``, or to the
            training images through the pipeline of validation.
        config (Calibration, optional): Defaults to ``quantize.calibration``.
    """

    def __init__(
        self, runner: Any, dataloader: Any = None, config: Optional[Calibration] = None
    ) -> None:
        self.config = config or runner.quantize_config.calibration
        if dataloader is None:
            dataloader = calibration_dataloader(runner, self.config)
        super().__init__(runner, dataloader)
        self._epoch = self._iter = 0
        self.stop_training = False
        self.val_begin = self.val_interval = 1
        runner.visualizer.dataset_meta = getattr(
            self.dataloader.dataset, 'metainfo', None
        )

    @property
    def max_epochs(self) -> int:
        """int: One: the passes together make the model's only epoch."""
        return 1

    @property
    def max_iters(self) -> int:
        """int: Forward passes of all passes together."""
        return self.batches * (1 + self.config.epochs)

    @property
    def epoch(self) -> int:
        """int: 1 once calibrated."""
        return self._epoch

    @property
    def iter(self) -> int:
        """int: Forward passes so far."""
        return self._iter

    @property
    def batches(self) -> int:
        """int: Batches of one pass, in this process."""
        return count_batches(self.dataloader, self.config)

    def run(self) -> nn.Module:
        """Calibrates, saves and validates.

        Returns:
            nn.Module: The calibrated model.

        Raises:
            QuantizeError: If an image cannot be read, or an activation is
                never finite.
        """
        runner = self.runner
        runner.call_hook('before_train')
        if self._epoch >= self.max_epochs:
            runner.logger.info('This checkpoint is calibrated already.')
        else:
            self._calibrate()
        runner.model.eval()
        if runner.val_loop is not None:
            runner.val_loop.run()
        runner.call_hook('after_train')
        return runner.model

    def _calibrate(self) -> None:
        runner, model = self.runner, self.runner.model
        model.train()
        references = self._pass('ranges', None, 0.0)
        self._check_ranges()
        for epoch in range(self.config.epochs):
            lr = self.config.lr * 0.5**epoch
            self._pass(f'biases, lr {lr:g}', references, lr)
        self._epoch = 1
        runner.visualizer.add_scalars(
            model.quantization.activations.scalars(), step=self._iter
        )
        runner.save_calibrated(CHECKPOINT)

    def _pass(
        self, name: str, references: Optional[list[dict[str, Tensor]]], lr: float
    ) -> list[dict[str, Tensor]]:
        runner = self.runner
        total = self.batches
        runner.logger.info(
            f'Calibration of {name}: {total} batches of '
            f'{self.dataloader.batch_size or 1} images'
        )
        bar = ProgressBar(total) if is_main_process() else None
        means = []
        batches = iter(self.dataloader)
        for index in range(total):
            try:
                batch = next(batches)
            except Exception as error:  # noqa: B902 - a pipeline raises any
                raise QuantizeError(
                    'an image of the calibration set could not be read '
                    f'({type(error).__name__}: {error}); check '
                    'train_dataloader or quantize.calibration.dataloader'
                ) from error
            step = runner.model.calibrate_step
            means.append(step(batch, references and references[index], lr))
            self._iter += 1
            if bar is not None:
                bar.update()
        if bar is not None:
            print(flush=True)
        return means

    def _check_ranges(self) -> None:
        activations = self.runner.model.quantization.activations
        rejected = activations.take_rejected()
        missing = activations.missing()
        # In the order of the plan: what is first may explain the others.
        broken = [name for name in rejected if name in missing]
        if broken:
            raise QuantizeError(
                f'{broken[0]} gave NaN or infinity on every calibration '
                'image; check the checkpoint (load_from) and the '
                'normalization of the images'
            )
        if rejected:
            self.runner.logger.warning(
                'Calibration: NaN or infinity was left out of the ranges of '
                + ', '.join(rejected)
            )
        if missing:
            self.runner.logger.warning(
                'Calibration never reached, so these stay in float: '
                + ', '.join(missing)
            )

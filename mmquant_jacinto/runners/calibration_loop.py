"""Calibration as a loop of MMEngine's runner."""

import copy
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop
from mmengine.utils import ProgressBar
from torch import Tensor, nn

from ..config.mixed_precision import FILE
from ..config.sections import Calibration, Finetune, Rounding
from ..errors import QuantizeError
from ..execute.corrections.weight_correction import corrected_weights
from ..methods.finetune import MEASURED
from ..methods.judged_corrections import Judgement, judges
from ..methods.mixed_precision import BitSearch
from ..quantizers.activations import ActivationQuantizers
from .budget import BudgetKeeper, LatencyKeeper
from .calibration_batches import (
    Batches,
    calibration_dataloader,
    count_batches,
    readable_images,
)
from .checkpoint_files import write_whole
from .train_batches import equalize_batches

CHECKPOINT = 'epoch_1.pth'
# How far channels reach is an average; these are enough.
REACH_IMAGES = 64


def with_progress(items: Sequence) -> Iterator[Any]:
    """Yields items, and shows in the first process how many there were."""
    if not is_main_process():
        yield from items
        return
    bar = ProgressBar(len(items))
    for item in items:
        yield item
        bar.update()
    print(flush=True)


def check_measured(activations: ActivationQuantizers, logger: MMLogger) -> None:
    """Checks what a pass over calibration images has measured.

    Raises:
        QuantizeError: If an activation was never finite.
    """
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
        logger.warning(
            'Calibration: NaN or infinity was left out of the ranges of '
            + ', '.join(rejected)
        )
    if missing:
        logger.warning(
            'Calibration never reached, so a test whose images do is refused: '
            + ', '.join(missing)
        )


def reach(activations: ActivationQuantizers) -> Tensor:
    """How far from end to end the ranges are, (N,); 0 where there is none yet."""
    return (activations.high - activations.low).detach()


@LOOPS.register_module()
class CalibrationLoop(BaseLoop):
    """Calibrates a float model.

    A float pass over the images measures the ranges and each layer's mean
    output, then ``epochs`` quantized passes over the same images correct the
    biases, and weights if asked to (none, where biases follow from what was
    measured). Of eight batches or more, some do not take part in that: where they are
    no nearer to float with the corrections, these are taken back. In between,
    ``quantize.mixed_precision`` chooses the weights' widths (with a backward pass on
    each of some images), and leaves them in ``mixed_precision.json``; then
    ``quantize.rounding`` how they are rounded. Last, ``quantize.finetune`` trains what
    there is, without labels; with few bits by itself, where the outputs are far from
    float.
    All of it is done again for each network that ``quantize.max_drop`` tries, and with
    what ``mixed_precision`` raises within a latency.
    Afterwards the loop saves ``epoch_1.pth`` and validates. ``QuantRunner`` uses it
    for ``quantize.mode='ptq'``. Several processes share the images, and end with the
    same state.

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
        equalize_batches(self.dataloader, 'the calibration set')
        self._epoch = self._iter = 0
        self.seconds = 0.0  # that the calibration took, without its validation
        self.first_batch: Any = None  # what a report measures on: it is loaded
        # How many times as far each range reaches at the end as half-way.
        self.growth: Optional[Tensor] = None
        self.judgement: Optional[Judgement] = None  # of corrections
        self.kept_budget: Optional[dict[str, Any]] = None  # what its JSON has
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
        return self.batches * (1 + self.config.passes)

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
            self._check_finetuned()
            runner.logger.info('This checkpoint is calibrated already.')
        else:
            start = time.monotonic()
            self._calibrate()
            self.seconds = time.monotonic() - start
        runner.model.eval()
        if runner.val_loop is not None:
            runner.val_loop.run()
        runner.call_hook('after_train')
        return runner.model

    def _calibrate(self) -> None:
        runner, model = self.runner, self.runner.model
        if runner.quantize_config.keeps_budget:
            self.kept_budget = BudgetKeeper(self).keep()
            model.train()
        else:
            if runner.quantize_config.keeps_latency:
                self.kept_budget = LatencyKeeper(self).keep()
                model.train()
            else:
                self.calibrate_with(self.config)
            # Never within a search: what that compares is calibrated alone.
            self._finetune_if_far()
        self._epoch = 1
        runner.visualizer.add_scalars(
            model.quantization.activations.scalars(), step=self._iter
        )
        runner.save_calibrated(CHECKPOINT)

    def calibrate_with(self, config: Calibration) -> None:
        """All passes over the images, for a model without ranges.

        Args:
            config (Calibration): From now on in the place of the present one.

        Raises:
            QuantizeError: See :meth:`run`.
        """
        runner, model = self.runner, self.runner.model
        references = self.measure_ranges(config)
        if model.plan.undecided:
            self._search_bits()
        rounding = runner.quantize_config.rounding
        if rounding.method != 'nearest':
            self._round(rounding)
        weights = bool(corrected_weights(model.quantization))
        kinds = dict(biases=self.config.corrects_biases, weights=weights)
        what = ' and '.join(name for name, corrected in kinds.items() if corrected)
        for epoch in range(self.config.passes):
            lr = self.config.lr * 0.5**epoch
            self._pass(f'{what}, pass {epoch + 1}', references, lr)
        model.correct_analytically()
        held_out = self._held_out
        self.judgement = None
        if held_out:
            batches = Batches(self.dataloader, held_out)
            self.judgement = model.judge_corrections(batches)
        if runner.quantize_config.finetune:
            self._finetune(runner.quantize_config.finetune)

    @property
    def _held_out(self) -> int:
        """int: Batches, the first, that judge corrections of biases and weights."""
        corrects = self.config.passes or self.config.is_analytic
        return judges(self.batches) if corrects else 0

    def measure_ranges(self, config: Calibration) -> list[dict[str, Tensor]]:
        """The pass in float, for a model without ranges.

        Args:
            config (Calibration): From now on in the place of the present one.

        Returns:
            List[Dict[str, Tensor]]: Of each batch, moments of the layers' outputs.

        Raises:
            QuantizeError: See :meth:`run`.
        """
        self.config, self._iter, self.growth = config, 0, None
        self.runner.model.train()
        self._measure_channels()
        references = self._pass('ranges', None, 0.0)
        check_measured(self.runner.model.quantization.activations, self.runner.logger)
        return references

    def _measure_channels(self) -> None:
        """Finds what channels are divided by, on the first of the images."""
        model = self.runner.model
        if not model.plan.scaled:
            return
        config = Calibration(num_images=REACH_IMAGES)
        total = min(self.batches, count_batches(self.dataloader, config))
        self.runner.logger.info(
            f'Reach of channels: {total} batches of '
            f'{self.dataloader.batch_size or 1} images'
        )
        batches = iter(Batches(self.dataloader, total))

        def run() -> None:
            args, kwargs = model.arguments(next(batches))
            model.module(*args, **kwargs)

        model.measure_channels(run for _ in with_progress(range(total)))

    def _round(self, options: Rounding) -> None:
        """Chooses how weights are rounded, on the first of the images."""
        config = Calibration(num_images=options.num_images)
        batches = min(self.batches, count_batches(self.dataloader, config))
        self.runner.logger.info(
            f'Rounding of weights ({options.method}), layer after layer: {batches} '
            f'batches of {self.dataloader.batch_size or 1} images'
        )
        self.runner.model.round_weights(Batches(self.dataloader, batches))

    def _check_finetuned(self) -> None:
        """Raises where a calibration that is over was to be fine-tuned, and was not."""
        config = self.runner.quantize_config
        if config.finetune and not self.runner.model.plan.is_learned:
            raise QuantizeError(
                f'quantize.finetune={config.finetune!r}: the calibration that is '
                'resumed is over, and was not fine-tuned; calibrate anew from the '
                'float checkpoint (load_from, without resume), or leave finetune away'
            )

    def _finetune_if_far(self) -> None:
        """Fine-tunes where bits are few and that is worth it, unless told."""
        measured = judges(self.batches) or min(self.batches, MEASURED)
        batches = Batches(self.dataloader, self.batches)
        self.runner.model.finetune_if_far(batches, measured, self.judgement)

    def _finetune(self, options: Finetune) -> None:
        """Trains all that there is for the float model's outputs."""
        self.runner.logger.info(
            f'Fine-tuning: {options.iterations} iterations over {self.batches} batches '
            f'of {self.dataloader.batch_size or 1} images'
        )
        self.runner.model.finetune(Batches(self.dataloader, self.batches))

    def _search_bits(self) -> None:
        """Chooses the widths of weights, on one image at a time."""
        runner, config = self.runner, self.runner.quantize_config.mixed_precision
        dataset, collate = self.dataloader.dataset, self.dataloader.collate_fn
        world = get_world_size()
        share = math.ceil(config.num_images / world)
        indices = list(itertools.islice(self.dataloader.sampler, share))
        runner.logger.info(f'Sensitivity of weights: {len(indices)} images')
        search = BitSearch(runner.model.quantization, config)
        for number, index in enumerate(with_progress(indices)):
            with readable_images():
                batch = collate([dataset[index]])
            runner.model.probe_step(search, batch, number * world + get_rank())
        table = search.finish()
        runner.logger.info(str(table))
        if is_main_process():
            write_whole(os.path.join(runner.work_dir, FILE), table.to_json())

    def _pass(
        self, name: str, references: Optional[list[dict[str, Tensor]]], lr: float
    ) -> list[dict[str, Tensor]]:
        runner = self.runner
        total, held_out = self.batches, self._held_out
        runner.logger.info(
            f'Calibration of {name}: {total} batches of '
            f'{self.dataloader.batch_size or 1} images'
        )
        means = []
        batches = iter(Batches(self.dataloader, total))
        for index in with_progress(range(total)):
            batch = next(batches)
            if self.first_batch is None and runner.quantize_config.report:
                # A preprocessor may change its batch in place.
                self.first_batch = copy.deepcopy(batch)
            step = runner.model.calibrate_step
            reference = references and references[index]
            means.append(step(batch, reference, lr, index < held_out))
            self._iter += 1
            # In the first pass alone: later ones count on.
            if self._iter == total // 2:
                half = reach(runner.model.quantization.activations)
            elif self._iter == total > 1:
                self.growth = reach(runner.model.quantization.activations) / half
        return means

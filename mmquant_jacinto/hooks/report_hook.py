"""Writes a report at the end of a run."""

import logging
import time
from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from ..report.build import (
    Images,
    add_calibration,
    add_scores,
    build_report,
    split_batch,
    write_report,
)
from ..report.curves import read_curves
from ..report.detections import Seen
from ..report.pictures import pixels
from .seen_images import SeenImagesHook

MEASURED, SCORED = 8, 32  # images
SHARE = 0.1  # of the run's own time
PAGE_SECONDS = 0.3  # of that: what drawing a page takes, however little is on it


@HOOKS.register_module()
class ReportHook(SeenImagesHook):
    """Writes ``report.html`` and ``report.json`` beside the log.

    At the end of a calibration, of a training and of a test. It takes at most a tenth
    of the run's own time, and leaves out what does not fit in; of a calibration and a
    training it measures one image all the same. It looks at images that the run has
    loaded, and takes the quantized network's predictions from there. A report that
    cannot be written costs a warning, never the run. ``QuantRunner`` registers this
    hook, unless ``quantize.report`` is False.

    Args:
        share (float): Of the run's time that it may take. Defaults to 0.1.

    Attributes:
        seconds (float): That the last report took.
        run_seconds (float): That its run took.
    """

    # Behind what saves checkpoints and logs.
    priority = 'LOWEST'

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self.seconds = self.run_seconds = 0.0
        self._start = 0.0
        self._metrics: dict[str, Any] = {}
        super().__init__('quantized', SCORED)

    def before_train(self, runner: Runner) -> None:
        """Looks at the clock."""
        self._start = time.monotonic()

    def before_test(self, runner: Runner) -> None:
        """Looks at the clock."""
        self._start = time.monotonic()

    def before_val_epoch(self, runner: Runner) -> None:
        """Forgets the images of former epochs."""
        self._seen.begin(runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        """Begins to keep images."""
        self._seen.begin(runner.test_loop)

    def after_val_epoch(
        self, runner: Runner, metrics: Optional[dict[str, float]] = None
    ) -> None:
        """Notes the scores."""
        self._metrics = dict(metrics or {})

    def after_train(self, runner: Runner) -> None:
        """Reports a calibration or a training."""
        # A calibration has no epochs of training in it.
        seconds = getattr(runner.train_loop, 'seconds', None)
        kind = 'training' if seconds is None else 'calibration'
        self._report(runner, kind, runner.train_loop, seconds)

    def after_test_epoch(
        self, runner: Runner, metrics: Optional[dict[str, float]] = None
    ) -> None:
        """Reports a test."""
        self._metrics = dict(metrics or {})
        self._report(runner, 'test', runner.test_loop, None)

    def _report(self, runner: Runner, kind: str, loop: Any, seconds: Any) -> None:
        if not is_main_process():
            return
        seconds = seconds or time.monotonic() - self._start
        averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        averages = averages if kind == 'training' else []
        was_training = runner.model.training
        start = time.monotonic()
        try:
            # A training is tested with its averaged weights.
            for hook in averages:
                hook.before_val_epoch(runner)
            runner.model.eval()
            path = self._write(runner, kind, loop, seconds)
            self.seconds, self.run_seconds = time.monotonic() - start, seconds
            runner.logger.info(
                f'Report: {path} ({self.seconds / seconds:.0%} of the time of the '
                f'{kind})'
            )
        except Exception as error:  # noqa: B902 - nothing of it may end a run
            runner.logger.log(
                logging.WARNING,
                f'No report in {runner.log_dir}, the {kind} itself is complete '
                f'({type(error).__name__}: {error}); quantize.report=False switches '
                'reports off',
            )
        finally:
            for hook in averages:
                hook.after_val_epoch(runner)
            runner.model.train(was_training)

    def _write(self, runner: Runner, kind: str, loop: Any, seconds: float) -> Any:
        seen = self._seen
        loaded = getattr(loop, 'first_batch', None)
        measured: Any = [item.batch for item in seen.images[:MEASURED]]
        if loaded is not None:
            measured = split_batch(loaded, MEASURED)
        elif not measured:
            loader = (loop if kind == 'test' else runner.val_loop or loop).dataloader
            measured = Images(loader.dataset, loader.collate_fn, MEASURED)
        scored = seen.images
        if kind == 'training':
            # What it predicted last may be of earlier weights.
            scored = [Seen(item.batch) for item in scored]
        report, pictures = build_report(
            *(runner.model, runner.experiment_name, kind, measured, scored),
            limit=max(0.0, self.share * seconds - PAGE_SECONDS),
            first=seconds / max(1, seen.total) if kind == 'test' else 0.0,
        )
        add_scores(report, 'quantized', self._metrics)
        if kind == 'calibration':
            add_calibration(report, loop.growth, loop.kept_budget)
        if kind == 'training':
            report.curves = read_curves(runner)
        # ``runner.iter`` of a test would build the training, and read its annotations.
        step = getattr(loop, 'iter', 0)
        runner.visualizer.add_scalars(report.scalars(), step=step)
        backends = runner.visualizer._vis_backends.values()
        # On disk they are in the page.
        elsewhere = [b for b in backends if not isinstance(b, LocalVisBackend)]
        for number, picture in enumerate(pictures if elsewhere else ()):
            # Without a slash: some backends make a file of that name.
            name, image = f'report_detections_{number}', pixels(picture)
            for backend in elsewhere:
                backend.add_image(name, image, step=step)
        return write_report(report, runner.log_dir, pictures)

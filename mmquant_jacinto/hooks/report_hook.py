"""Writes a report at the end of a run."""

import logging
import time
from typing import Any, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..report.build import (
    Images,
    add_budget,
    add_scores,
    build_report,
    split_batch,
    write_report,
)
from ..report.curves import read_curves
from ..report.pictures import pixels

MEASURED, SCORED = 8, 32  # images
SHARE = 0.1  # of the run's own time


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes ``report.html`` and ``report.json`` beside the log.

    At the end of a calibration, of a training and of a test. It takes at most a tenth
    of the run's own time, and leaves out what does not fit in. A report that cannot be
    written costs a warning, never the run. ``QuantRunner`` registers this hook, unless
    ``quantize.report`` is False.

    Args:
        share (float): Of the run's time that it may take. Defaults to 0.1.
    """

    # Behind what saves checkpoints and logs.
    priority = 'LOWEST'

    def __init__(self, share: float = SHARE) -> None:
        self.share = share
        self._start = 0.0
        self._metrics: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Looks at the clock."""
        self._start = time.monotonic()

    def before_test(self, runner: Runner) -> None:
        """Looks at the clock."""
        self._start = time.monotonic()

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
        loop = runner.train_loop if kind == 'calibration' else runner.val_loop
        self._report(runner, kind, loop or runner.train_loop, runner.val_loop, seconds)

    def after_test_epoch(
        self, runner: Runner, metrics: Optional[dict[str, float]] = None
    ) -> None:
        """Reports a test."""
        self._metrics = dict(metrics or {})
        self._report(runner, 'test', runner.test_loop, runner.test_loop, None)

    def _report(
        self, runner: Runner, kind: str, seen: Any, scored: Any, seconds: Any
    ) -> None:
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
            path = self._write(runner, kind, seen, scored, seconds)
            share = (time.monotonic() - start) / seconds
            runner.logger.info(
                f'Report: {path} ({share:.0%} of the time of the {kind})'
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

    def _write(
        self, runner: Runner, kind: str, seen: Any, scored: Any, seconds: float
    ) -> Any:
        loaded = getattr(seen, 'first_batch', None)
        measured: Any = (
            _images(seen, MEASURED) if loaded is None else split_batch(loaded, MEASURED)
        )
        pictured = _images(scored, SCORED) if scored is not None else ()
        report, pictures = build_report(
            *(runner.model, runner.experiment_name, kind, measured, pictured),
            limit=self.share * seconds,
        )
        add_scores(report, 'quantized', self._metrics)
        if kind == 'calibration' and runner.train_loop.kept_budget is not None:
            add_budget(report, runner.train_loop.kept_budget)
        if kind == 'training':
            report.curves = read_curves(runner)
        runner.visualizer.add_scalars(report.scalars(), step=runner.iter)
        for number, picture in enumerate(pictures):
            # Without a slash: a local backend makes a file of that name.
            name = f'report_detections_{number}'
            runner.visualizer.add_image(name, pixels(picture), step=runner.iter)
        return write_report(report, runner.log_dir, pictures)


def _images(loop: Any, count: int) -> Images:
    loader = loop.dataloader
    return Images(loader.dataset, loader.collate_fn, count)

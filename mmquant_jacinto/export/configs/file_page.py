"""The page of a file: what a test of it leaves, and its predictions for others."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...config.quantize_config import QuantizeConfig
from ...errors import QuantizeError
from ...hooks.seen_images import SeenImagesHook
from ...report.build import add_scores, write_report
from ...report.content import FileReport, Report
from ...report.detections import Seen, read_prediction
from ...report.pictures import Comparison
from ...targets.target import get_file_target
from ..file_report import SHARE, sentences, slowest_nodes
from ..rules.check import check
from ..session import proof_backend
from .end_to_end import build_float
from .file_run import FileRun, read_file

SCORED = 32  # images
# Runs of the file that a profile takes, its setting up included.
PROFILE_RUNS = 12


class FileReportHook(SeenImagesHook):
    """Writes the page of a file's test beside its log.

    Scores, pictures, rules of the target and slowest nodes; what the layers of the
    checkpoint do is in that one's own pages. A page that cannot be written costs a
    warning.

    Args:
        path (str): Of the file.
        run (FileRun): Its test.
    """

    priority = 'LOWEST'

    def __init__(self, path: str, run: FileRun) -> None:
        self.path, self.file_run = path, run
        super().__init__('file', SCORED)
        self._feeds: dict[str, Any] = {}
        self._start = 0.0

    def before_test_epoch(self, runner: Runner) -> None:
        """Begins to keep images."""
        self._start = time.monotonic()
        self._seen.begin(runner.test_loop)

    def after_test_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Writes the page."""
        seconds = time.monotonic() - self._start
        try:
            path = self._write(runner, dict(metrics or {}), seconds)
            runner.logger.info(f'Report: {path}')
        except Exception as error:  # noqa: B902 - nothing of it may end a test
            print_log(
                f'No report in {runner.log_dir}, the test itself is complete '
                f'({type(error).__name__}: {error}); quantize.report=False switches '
                'reports off',
                'current',
                logging.WARNING,
            )

    def _write(self, runner: Runner, metrics: dict[str, Any], seconds: float) -> Path:
        session, proto = self.file_run.session, onnx.load(self.path)
        target = get_file_target(session.metadata['target'])
        settings = {key: session.metadata.get(key) for key in ('target', 'bits')}
        report = Report(Path(self.path).stem, 'test', settings, {}, {}, {})
        report.file = FileReport(
            path=self.path,
            target=target.name,
            bytes=Path(self.path).stat().st_size,
            violations=sentences(
                check(proto, target.rules_for(session.metadata['preset']))
            ),
        )
        comparison = Comparison()
        for seen in self._seen.images:
            comparison.add(seen.predictions)
        pictures = comparison.fill(report)
        add_scores(report, 'file', metrics)
        each = seconds / max(1, self._seen.total)
        if session.last_feeds and PROFILE_RUNS * each <= SHARE * seconds:
            report.file.slowest = slowest_nodes(
                proto, session.last_feeds, target.backend
            )
        else:
            report.skipped.append("the file's slowest nodes")
        return write_report(report, runner.log_dir, pictures)


def reports(cfg: Config) -> bool:
    """Whether a config wants pages: by default."""
    config = QuantizeConfig.parse(cfg.get('quantize'))
    return config is None or config.report


class SeenByFile:
    """Images, with what a file finds in them.

    Args:
        cfg (Config): As the user has it.
        run (FileRun): Of the whole model's file.
        images (Collection): Batches of one image, as the checkpoint's test has them.
        as_file (Iterable): The same images as the file's test has them.
    """

    def __init__(
        self, cfg: Config, run: FileRun, images: Any, as_file: Iterable[Any]
    ) -> None:
        self.run, self.images, self.as_file = run, images, as_file
        self.model: Any = build_float(cfg)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Seen]:
        for batch, other in zip(self.images, self.as_file):
            # No longer than that: the order of equals is the file's in it.
            with self.run.in_place(self.model), torch.no_grad():
                (sample,) = self.model.test_step(copy.deepcopy(other))
            yield Seen(batch, dict(file=read_prediction(sample)))


def seen_by_file(cfg: Config, path: str, images_of: Callable[[Config], Any]) -> Any:
    """Images for a page, with what a file finds in them.

    Args:
        cfg (Config): As the user has it.
        path (str): Of the file.
        images_of (Callable): Given a config, batches of one image of its test set.

    Returns:
        Iterable: Without the file's predictions where it is not the whole model.

    Raises:
        QuantizeError: If it is no file that runs.
    """
    proto = read_file(path)
    metadata = {item.key: item.value for item in proto.metadata_props}
    if 'target' not in metadata:
        raise QuantizeError(
            f'{path} does not say what it was exported for; give a file that '
            'tools/export.py wrote'
        )
    backend = proof_backend(get_file_target(metadata['target'])) or 'onnxruntime'
    run = FileRun(cfg, proto, backend, in_part=True)
    if run.session.skipped:
        return images_of(cfg)
    return SeenByFile(cfg, run, images_of(cfg), images_of(run.cfg))

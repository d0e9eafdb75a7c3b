"""From a file to its scores: an exported model under MMEngine's test loop."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...errors import QuantizeError
from ...execute.integer.stable_topk import StableOrder
from ..packages import require
from ..session import Session, in_place_of_modules
from .test_images import fit_pipeline, innermost_dataset


class FileRun:
    """A test of an exported file.

    Args:
        cfg (Config): The model's config; its data pipeline, decoding and evaluator
            are used.
        path (str): The file.
        backend (str): What runs it, see :class:`~.session.Session`.

    Raises:
        QuantizeError: If the file cannot be read, or lacks a part of the model.

    Attributes:
        cfg (Config): To build the runner from: without quantization and weights,
            with images of the file's size.
    """

    def __init__(self, cfg: Config, path: str, backend: str = 'onnxruntime') -> None:
        if not Path(path).is_file():
            raise QuantizeError(f'{path} is not there; tools/export.py makes it')
        try:
            model = require('onnx').load(path)
        except Exception as error:  # noqa: B902 - protobuf has an error of its own
            raise QuantizeError(f'{path} is no ONNX file: {error}') from None
        self.session = Session(model, backend)
        if self.session.skipped:
            missing = ', '.join(self.session.skipped)
            raise QuantizeError(
                f'{path} lacks a part of the model ({missing}): test the checkpoint'
            )
        self.cfg = copy.deepcopy(cfg)
        self.cfg.load_from = None
        self.cfg.pop('quantize', None)
        height, width = self.session.input_shape[2:]
        if height and width:
            fit_pipeline(
                innermost_dataset(self.cfg.test_dataloader.dataset).pipeline,
                (height, width),
            )

    def test(self, runner: Runner) -> dict[str, float]:
        """Runs the test loop and logs images per second.

        Args:
            runner (Runner): Built from :attr:`cfg`.

        Returns:
            Dict[str, float]: The metrics.
        """
        runner.register_hook(_ThroughputHook(), priority='LOWEST')
        # As the checkpoint's test has it.
        with in_place_of_modules(runner.model, self.session), StableOrder():
            return runner.test()


class _ThroughputHook(Hook):
    """Logs the images per second of a test, data loading and decoding included."""

    def before_test_epoch(self, runner: Runner) -> None:
        self.images, self.start = 0, time.perf_counter()
        self.end = self.start

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        self.images += len(outputs)
        self.end = time.perf_counter()  # what follows is the evaluation

    def after_test_epoch(self, runner: Runner, metrics: Any = None) -> None:
        seconds = self.end - self.start
        print_log(
            f'{self.images} images, {self.images / seconds:.1f} images per second',
            'current',
        )

"""From a file to its scores: an exported model under MMEngine's test loop."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from ...errors import QuantizeError
from ...execute.integer.stable_topk import StableOrder
from ...wrappers.distillation import student_of
from ..in_place import in_place_of_modules
from ..packages import require
from ..session import Session
from .file_input import METADATA_KEY, FileInput
from .proof import elsewhere

if TYPE_CHECKING:
    import onnx


class FileRun:
    """A test of an exported file.

    Args:
        cfg (Config): The model's config; its data pipeline, decoding and evaluator
            are used.
        model (onnx.ModelProto): The file.
        backend (str): What runs it, see :class:`~.session.Session`.
        in_part (bool): Whether a file will do that lacks a part of the model, for the
            place of the rest in the checkpoint's own. Defaults to False.

    Raises:
        QuantizeError: If the file lacks a part of the model.

    Attributes:
        cfg (Config): To build the runner from: without quantization and weights,
            with the images that the file is made for.
    """

    def __init__(
        self,
        cfg: Config,
        model: onnx.ModelProto,
        backend: str = 'onnxruntime',
        in_part: bool = False,
    ) -> None:
        self.session = Session(model, backend)
        if self.session.skipped and not in_part:
            missing = ', '.join(self.session.skipped)
            raise QuantizeError(
                f'the file lacks a part of the model ({missing}): test the checkpoint'
            )
        self.cfg = copy.deepcopy(cfg)
        self.cfg.load_from = None
        self.cfg.pop('quantize', None)
        self.input = _input_of(self.session)
        self.input.fit(self.cfg.test_dataloader.dataset)
        batch = self.session.input_shape[0]
        if batch:
            # Not all outputs have the images of a batch along their first dimension.
            self.cfg.test_dataloader.batch_size = batch

    @classmethod
    def read(cls, cfg: Config, path: str, backend: str = 'onnxruntime') -> FileRun:
        """A test of the file at a path.

        Raises:
            QuantizeError: If it cannot be read, or lacks a part of the model.
        """
        run = cls(cfg, read_file(path), backend)
        warning = elsewhere(run.session.metadata, backend)
        if warning is not None:
            print_log(warning, 'current', logging.WARNING)
        return run

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Context in which a model of the config predicts by the file.

        Args:
            model (nn.Module): In float, whose weights do not matter; the checkpoint's
                quantized one where the file lacks a part, which that computes then.
        """
        # Ordered as the checkpoint's test has it.
        with self.input.applied(model), StableOrder():
            with in_place_of_modules(student_of(model), self.session):
                yield

    def test(self, runner: Runner) -> dict[str, float]:
        """Runs the test loop and logs images per second.

        Args:
            runner (Runner): Built from :attr:`cfg`.

        Returns:
            Dict[str, float]: The metrics.
        """
        runner.register_hook(_ThroughputHook(), priority='LOWEST')
        with self.in_place(runner.model):
            return runner.test()


def read_file(path: str) -> onnx.ModelProto:
    """The ONNX file at a path.

    Raises:
        QuantizeError: If there is none.
    """
    if not Path(path).is_file():
        raise QuantizeError(f'{path} is not there; tools/export.py makes it')
    try:
        return require('onnx').load(path)
    except Exception as error:  # noqa: B902 - protobuf has an error of its own
        raise QuantizeError(f'{path} is no ONNX file: {error}') from None


def _input_of(session: Session) -> FileInput:
    """How the images of a test become a file's input, from its metadata.

    Older files do not say. They take what the pipeline gives, and the session refuses
    what has another size.
    """
    found = session.metadata.get(METADATA_KEY)
    if found is None:
        height, width = session.input_shape[2:]
        return FileInput((height, width))
    return FileInput.from_metadata(json.loads(found))


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

"""End to end: what checkpoint and file score, each by its own way in."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...report.detections import read_prediction
from ...wrappers.quant_module import QuantModule
from .file_run import FileRun
from .image_sources import folder_images
from .test_images import TestImages

# Scores differ if both the relative and the absolute difference exceed these.
MAX_CHANGE, MIN_CHANGE = 0.05, 0.01


@dataclass
class Scored:
    """What one of the two scored.

    Args:
        name (str): What, and on which images.
        scores (Dict[str, float]): The metrics; empty where there is no evaluator.
        predictions (List[str]): A digest of each image's.
        seen (List): Of each image what a page compares, see
            :func:`~mmquant_jacinto.report.detections.read_prediction`.
    """

    name: str
    scores: dict[str, float] = field(default_factory=dict)
    predictions: list[str] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)

    def equal(self, other: Scored) -> int:
        """How many images both predict the same of, bit for bit."""
        return sum(a == b for a, b in zip(self.predictions, other.predictions))

    def parting_metric(self, other: Scored) -> str | None:
        """The first metric that is another score, not the same by chance."""
        for key, value in self.scores.items():
            largest = max(abs(value), abs(other.scores[key]))
            if abs(value - other.scores[key]) > max(MAX_CHANGE * largest, MIN_CHANGE):
                return key
        return None


@dataclass
class EndToEnd:
    """Both scores.

    Args:
        own (Scored): The checkpoint by the user's own test pipeline.
        same (Scored): The checkpoint on the images that the file sees; ``own`` where
            these are those.
        file (Scored): The file, as ``tools/test.py CONFIG FILE`` tests it. Where it
            lacks a part of the model, in the checkpoint, which computes the rest.
    """

    own: Scored
    same: Scored
    file: Scored

    def problem(self, exact: bool) -> str | None:
        """How checkpoint and file disagree on the same images; None if they do not.

        Args:
            exact (bool): Whether all outputs of the file are equal to the network's,
                so that all predictions must be.
        """
        count = len(self.file.predictions)
        equal = self.same.equal(self.file)
        if exact and equal < count:
            return (
                f'checkpoint and file predict otherwise on {count - equal} of {count} '
                "images, though the network's outputs are equal: the model's decoding "
                'reads what the file does not give'
            )
        key = self.same.parting_metric(self.file)
        if key is None:
            return None
        values = f'{self.same.scores[key]:.4f} and the file {self.file.scores[key]:.4f}'
        return f'the checkpoint has {key} {values} on the same images'

    @property
    def rows(self) -> list[Scored]:
        """List[Scored]: Each once."""
        return [
            self.own,
            *([] if self.same is self.own else [self.same]),
            self.file,
        ]


def score_both(
    cfg: Config, wrapper: QuantModule, run: FileRun, images: TestImages
) -> EndToEnd:
    """Scores checkpoint and file on the first images of the test set.

    Args:
        cfg (Config): As the user has it.
        wrapper (QuantModule): A test module; computes as the file's engine does.
        run (FileRun): The file; it may lack a part of the model.
        images (TestImages): What the file was made for.
    """
    # Where all images have one size, how many are in a batch changes no pixel.
    batch_size = 1 if len(images.sizes) == 1 else None
    own = _score('checkpoint', cfg, wrapper, images, images.count, batch_size)
    same, count = own, len(own.predictions)
    if not images.input.is_untouched or batch_size is None:
        with images.input.applied(wrapper.module):
            name = "checkpoint, the file's images"
            same = _score(name, images.cfg, wrapper, images, count, 1)
    name, model = 'file', cast(nn.Module, wrapper)
    if run.session.skipped:
        name = 'file, the rest by the checkpoint'
    else:
        model = build_float(cfg)
    with run.in_place(wrapper.module if run.session.skipped else model):
        found = _score(name, run.cfg, model, images, count, 1)
    return EndToEnd(own, same, found)


def build_float(cfg: Config) -> nn.Module:
    """The config's float model, whose weights do not matter."""
    model_cfg = copy.deepcopy(cfg.model)
    backbone = model_cfg.get('backbone')
    if isinstance(backbone, dict) and 'init_cfg' in backbone:
        backbone['init_cfg'] = None
    model = MODELS.build(model_cfg)
    model.eval()  # that of MMDetection's distilled detectors returns nothing
    return model


def _score(
    name: str,
    cfg: Config,
    model: Any,
    images: TestImages,
    count: int,
    batch_size: int | None,
) -> Scored:
    """Runs a test on the first images; ``batch_size`` None is the config's."""
    found, evaluator = Scored(name), None
    if images.folder is not None:
        batches = folder_images(cfg, images.folder)
    else:
        loader = copy.deepcopy(cfg.test_dataloader)
        loader.update(num_workers=0, persistent_workers=False)
        if batch_size is not None:
            loader.batch_size = batch_size
        batches = Runner.build_dataloader(loader, seed=0)
        if cfg.get('test_evaluator') is not None:
            evaluator = Evaluator(copy.deepcopy(cfg.test_evaluator))
            evaluator.dataset_meta = getattr(batches.dataset, 'metainfo', None)
    for batch in batches:
        if len(found.predictions) >= count:
            break
        with torch.no_grad():
            results = model.test_step(copy.deepcopy(batch))
        found.predictions += [digest(result) for result in results]
        found.seen += [read_prediction(result) for result in results]
        if evaluator is not None:
            evaluator.process(results, batch)
    if evaluator is not None:
        scores = evaluator.evaluate(len(found.predictions))
        found.scores = {key: float(value) for key, value in scores.items()}
    return found


def digest(prediction: Any) -> str:
    """A number for all that a model predicts of an image."""
    total = hashlib.sha1()
    for item in _parts(prediction):
        total.update(item)
    return total.hexdigest()


def _parts(item: Any) -> Iterator[bytes]:
    if isinstance(item, Tensor):
        yield str((item.dtype, tuple(item.shape))).encode()
        # An engine's zeros may have a sign, which is no difference.
        unsigned = item + 0 if item.is_floating_point() else item
        yield unsigned.detach().cpu().contiguous().numpy().tobytes()
    elif isinstance(item, BaseDataElement):
        for key in sorted(item.keys()):
            # What was true of the image, and how it was padded, is no prediction.
            if not key.startswith('gt_') and key != 'ignored_instances':
                yield key.encode()
                yield from _parts(getattr(item, key))
    elif isinstance(item, dict):
        for key in sorted(item):
            yield from _parts(item[key])
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _parts(part)
    elif hasattr(item, 'tensor'):
        yield from _parts(item.tensor)
    else:
        yield repr(item).encode()

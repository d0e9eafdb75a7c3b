"""Build: a report of a model on images, and the files that it is written to."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, Callable

import torch

from ..errors import QuantizeError
from ..execute.behaviour import Behaviour
from ..record.side_effects import preserved_random_state
from .causes import find_growth
from .content import Report, Score
from .detections import Seen, read_prediction
from .measuring.measurement import Measurement, Stopwatch, describe
from .page.render import render
from .pictures import MOST_PICTURES, Comparison

PAGE, DATA = 'report.html', 'report.json'
# Of the time that may be taken, by when layers are measured, and predictions are
# compared; the rest is for the page.
LAYERS_SHARE, PICTURES_SHARE = 0.5, 0.65
COMPARE_SECONDS = 0.2  # what scores and pictures of known predictions take
DRAW_SECONDS = 0.1  # of that, the pictures


class Images:
    """Images of a data set, each a batch of its own, loaded as they are asked for.

    Args:
        dataset (Any): Where from.
        collate (Callable): Of its dataloader.
        count (int): How many at most, evenly spread.
    """

    def __init__(self, dataset: Any, collate: Callable, count: int) -> None:
        self.dataset, self.collate = dataset, collate
        size = min(count, len(dataset))
        self.indices = [index * len(dataset) // size for index in range(size)]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Any]:
        for index in self.indices:
            yield self.collate([self.dataset[index]])

    def __contains__(self, batch: object) -> bool:
        return False  # each time a new one


def split_batch(batch: Any, count: int) -> list[Any]:
    """The first images of a batch, each a batch of its own.

    Args:
        batch (Any): As a dataloader yields it: a dict or a sequence of fields, each a
            sequence or a tensor of as many items as there are images; or a tensor.
        count (int): Images at most.
    """
    return [_part(batch, index) for index in range(min(count, _size(batch)))]


def _size(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return len(batch)
    fields = batch.values() if isinstance(batch, Mapping) else batch
    sizes = [
        _size(field) if isinstance(field, Mapping) else len(field)
        for field in fields
        if isinstance(field, (torch.Tensor, Mapping, list, tuple))
    ]
    return min(sizes, default=0)


def _part(batch: Any, index: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[index : index + 1]
    if isinstance(batch, Mapping):
        return {key: _field(field, index) for key, field in batch.items()}
    return type(batch)(_field(field, index) for field in batch)


def _field(field: Any, index: int) -> Any:
    if isinstance(field, Mapping):
        return _part(field, index)
    if isinstance(field, (torch.Tensor, list, tuple)):
        return field[index : index + 1]
    return field


class Subject:
    """A quantized model, as a report runs it.

    Args:
        model (Any): A ``QuantModule``, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.quantization = model.quantization

    def run(self, behaviour: Behaviour, batch: Any) -> Any:
        """Runs the model with a behaviour; a batch may be changed by doing so."""
        self.quantization.executor.behaviour = behaviour
        args, kwargs = self.model.arguments(copy.deepcopy(batch))
        return self.model.module(*args, **kwargs)

    @torch.no_grad()
    def predict(self, batch: Any, in_float: bool) -> Any:
        """The data sample of an image, with what is predicted for it."""
        quantization = self.quantization
        if in_float:
            quantization.executor.behaviour = Behaviour()
        else:
            quantization.set_phase('test')
        return self.model.module.test_step(copy.deepcopy(batch))[0]


def build_report(
    model: Any,
    title: str,
    kind: str,
    measured: Any,
    scored: Any = (),
    limit: float | None = None,
    first: float = 0.0,
) -> tuple[Report, list[str]]:
    """Measures a quantized model.

    Args:
        model (Any): A ``QuantModule`` with ranges, in evaluation mode.
        title (str): Of the page.
        kind (str): See :class:`Report`.
        measured (Iterable): Batches of one image, that layers are measured on.
        scored (Iterable): Batches of one image with its truth, or :class:`Seen` with
            what is known of them.
        limit (float, optional): Seconds that it may take. None: any.
        first (float): What an image is expected to take, so that not even one is
            looked at for which there is no time. 0: one always is.

    Returns:
        Tuple[Report, List[str]]: The report, and pictures for its page.
    """
    subject = Subject(model)
    quantization, phase = subject.quantization, subject.quantization.phase
    report = describe(quantization, title, kind)
    watch = Stopwatch(limit)
    try:
        with preserved_random_state():
            part = None if limit is None else LAYERS_SHARE * limit
            Measurement(quantization, subject.run, part, first).fill(report, measured)
            pictures = compare(subject, report, scored, watch, first)
    finally:
        quantization.set_phase(phase)
    report.seconds = watch.seconds
    return report, pictures


def compare(
    subject: Subject, report: Report, scored: Any, watch: Stopwatch, first: float = 0.0
) -> list[str]:
    """Compares predictions, as far as the time goes; returns pictures."""
    if not hasattr(subject.model.module, 'test_step'):
        return []
    comparison = Comparison()
    each, count = first, 0
    for item in scored:
        if not watch.allows(each, PICTURES_SHARE):
            break
        start = watch.seconds
        seen = item if isinstance(item, Seen) else Seen(item)
        in_float = read_prediction(subject.predict(seen.batch, True))
        if in_float is None:
            return []
        known = dict(seen.predictions)
        if 'quantized' not in known:
            known['quantized'] = read_prediction(subject.predict(seen.batch, False))
        order = sorted(known, key=lambda network: network != 'quantized')
        comparison.add({'float': in_float, **{name: known[name] for name in order}})
        # The first sets the integer model up.
        each = watch.seconds - start if count else 0.5 * (watch.seconds - start)
        count += 1
    if count < len(scored):
        report.skipped.append(f'{len(scored) - count} of {len(scored)} images to score')
    if not count and (watch.limit is None or watch.limit >= COMPARE_SECONDS):
        # Nothing has to be run for what the run itself has predicted.
        for item in scored:
            comparison.add(item.predictions if isinstance(item, Seen) else {})
    has_time = watch.allows(DRAW_SECONDS)
    pictures = comparison.fill(report, MOST_PICTURES if has_time else 0)
    if report.pictures and not has_time:
        report.skipped.append('pictures')
    return pictures


def add_scores(report: Report, network: str, metrics: dict[str, Any]) -> None:
    """Adds what an evaluator said, in its own unit."""
    report.scores += [
        Score(network, name, value) for name, value in numbers_of(metrics).items()
    ]


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What is a number of what an evaluator said; MMSegmentation's are of NumPy."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool)
    }


def add_calibration(
    report: Report,
    growth: torch.Tensor | None,
    kept: Mapping[str, Any] | None,
) -> None:
    """Adds what a calibration knows of itself.

    Args:
        report (Report): Of the calibration.
        growth (Tensor, optional): How many times as far each range reaches at its end
            as half-way, (N,).
        kept (Mapping[str, Any], optional): See :func:`add_budget`.
    """
    if growth is not None and report.layers:
        report.findings += find_growth(growth.tolist())
    if kept is not None:
        add_budget(report, kept)


def add_budget(report: Report, kept: Mapping[str, Any]) -> None:
    """Adds what keeping a budget took, and float's score where it was scored.

    Args:
        report (Report): Of the calibration.
        kept (Mapping[str, Any]): What its ``max_drop.json``, or the
            ``mixed_precision.json`` of a latency, has.
    """
    left_out = ('key', 'rankings', 'finished')
    report.budget = {k: value for k, value in kept.items() if k not in left_out}
    if 'metric' not in kept:
        return
    known = {(score.network, score.metric) for score in report.scores}
    if ('float', kept['metric']) not in known:
        add_scores(report, 'float', {kept['metric']: kept['float']})


@contextmanager
def collection_paused() -> Iterator[None]:
    """Without looking for cyclic garbage.

    A page is hundred thousands of small objects, nearly all of which go when it is
    there. In their midst, looking walks all that a run has loaded: as long as drawing
    takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def write_report(report: Report, folder: str, pictures: Sequence[str] = ()) -> Path:
    """Writes page and data, each whole or not at all.

    Args:
        report (Report): What to write.
        folder (str): Where to; made if it is not there.
        pictures (Sequence[str]): Of detections.

    Returns:
        Path: Of the page.

    Raises:
        QuantizeError: If it cannot be written, or a library is missing.
    """
    with collection_paused():
        data = report.to_json()
        page = render(report, pictures, data)
    try:
        os.makedirs(folder, exist_ok=True)
        for name, text in ((DATA, data), (PAGE, page)):
            path = Path(folder, name)
            part = path.with_name(name + '.part')
            part.write_text(text, encoding='utf-8')
            part.replace(path)
    except OSError as error:
        raise QuantizeError(
            f'the report cannot be written to {folder} ({error.strerror}); choose '
            'another folder'
        ) from error
    return Path(folder, PAGE)

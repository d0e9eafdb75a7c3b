"""The first screen in words: the score, what is lost, why, and the line to add.

It is read by people who know nothing of quantization.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from ...config.max_drop import MaxDrop
from ..causes import next_line
from ..content import Finding, Report, Score, is_weighed

# Detectors whose outputs are further from float than this lose points; what is nearer
# loses none that their 20 images show (docs/pretrained.md).
GOOD_SNR = 25.0
SEARCH = 'max_drop=1.0'


class Loss(NamedTuple):
    """What a score says of float and the quantized network.

    Args:
        metric (str): Its name.
        start (float): Of float, in the unit of the evaluator.
        end (float): Of the quantized network.
        points (float): That are lost, hundredths of the whole; negative: won.
        interval (Sequence[float], optional): Of these, 95 %.
        images (int, optional): That were scored.
    """

    metric: str
    start: float
    end: float
    points: float
    interval: Any = None
    images: int | None = None

    @property
    def is_certain(self) -> bool:
        """bool: Whether it is beyond chance, or that is not known."""
        return self.points > 0 and (self.interval is None or self.interval[0] > 0)

    def __str__(self) -> str:
        text = (
            f'Quantized, the network scores {self.end:.3g} where float scores '
            f'{self.start:.3g} ({self.metric}): '
        )
        if self.points <= 0:
            return f'{text}nothing is lost by it.'
        text += f'{self.points:.1f} points are lost'
        if self.interval is None:
            return f'{text}.'
        low, high = self.interval
        between = f'{low:.1f} to {high:.1f} with 95 % confidence'
        if low > 0:
            return f'{text} ({between}, on {self.images} images).'
        return f'{text}, which may be chance on {self.images} images ({between}).'


def loss_of(report: Report) -> Loss | None:
    """What is lost, where both networks were scored."""
    kept = report.budget
    if 'metric' in kept:
        return Loss(kept['metric'], kept['float'], kept['final'], kept['drop'])
    scores: dict[str, dict[str, Score]] = {}
    for score in report.scores:
        scores.setdefault(score.metric, {})[score.network] = score
    for metric, found in scores.items():
        if {'float', 'quantized'} <= found.keys():
            start, end = found['float'], found['quantized']
            point = 0.01 if abs(start.value) <= 1 and start.low is None else 1.0
            points = (start.value - end.value) / point
            return Loss(metric, start.value, end.value, points, end.lost, end.images)
    return None


def verdict(report: Report) -> dict[str, Any]:
    """Sentences and lines for the first screen.

    Returns:
        Dict[str, Any]: ``headline``, ``distance`` (of the outputs, in decibels),
        ``why``, or ``done`` (that nothing is to be done), ``next`` (a line, or None),
        ``proof`` of it, ``search``, a second line or None, and ``searching``, what
        that does.
    """
    loss = loss_of(report)
    found: dict[str, Any] = dict(
        headline=_headline(report, loss),
        distance=_distance(report),
        next=None,
        why='',
        done='',
        proof='',
        search=None,
        searching=_searching(),
    )
    if report.budget.get('met'):
        found['done'] = (
            f'That is within the {report.budget["settings"]["points"]:g} of max_drop. '
            'There is nothing that has to be done.'
        )
        return found
    good = bool(report.outputs) and _median(report) >= GOOD_SNR
    if good and not (loss is not None and loss.is_certain):
        found['done'] = 'There is nothing that has to be done.'
        return found
    trial = next_line(report.trials)
    search = SEARCH if _can_search(report) else None
    if trial is not None:
        found.update(
            next=trial.line,
            why=_blame(report),
            proof=f'Tried on the measured images, it takes the outputs from '
            f'{trial.snr_before:.1f} to {trial.snr_after:.1f} dB ({trial.why}). '
            f'{_price(trial.line)}{_further(report)}',
            search=search,
        )
    elif report.findings and not report.trials:
        first = report.findings[0]
        found.update(
            next=search or (first.remedy if is_weighed(report.layers) else None),
            why=_untried(report, first),
            proof=_searching() if search else _further(report).strip(),
        )
    elif report.outputs:
        found.update(
            next=search,
            why=f'{_blame(report)} Nothing that was tried brings the outputs nearer to '
            'float by a decibel.',
            proof=_searching() if search else '',
        )
    return found


def _median(report: Report) -> float:
    return statistics.median(report.outputs.values())


def _headline(report: Report, loss: Loss | None) -> str:
    if loss is not None:
        return str(loss)
    return _scored(report) or (
        'Nothing was scored.' if report.layers else 'Nothing was measured.'
    )


def _distance(report: Report) -> str:
    if not report.outputs:
        nothing = 'Its outputs could not be compared with those in float.'
        return nothing if report.layers else ''
    median, least = _median(report), min(report.outputs.values())
    near = 'near to' if median >= GOOD_SNR else 'far from'
    count = len(report.outputs)
    rest = '' if count == 1 else f' in the median, {least:.1f} in the worst of {count}'
    return (
        f'Its outputs are {near} those of float: {median:.1f} dB of signal to noise'
        f'{rest}. Detectors that had {GOOD_SNR:.0f} dB or more lost nothing that '
        'their scores showed; each 6 dB halve the error.'
    )


def _scored(report: Report) -> str:
    """The last network's score, where that is all there is."""
    if not report.scores:
        return ''
    # With its interval, if one has.
    score = min(reversed(report.scores), key=lambda item: item.low is None)
    network = 'The file' if score.network == 'file' else f'The {score.network} network'
    text = f'{network} has {score.metric} {score.value:.3g}'
    if score.low is not None:
        text += f' ({score.low:.3g} to {score.high:.3g} on {score.images} images)'
    if not report.layers:
        return f'{text}; nothing was measured of its layers.'
    return (
        f'{text}. What is lost is not known: this run did not score the float network, '
        'quant_report.py, below, does.'
    )


def _blame(report: Report) -> str:
    """Weights or activations, and the worst layer."""
    weights = sum(layer.noise_of_weight or 0.0 for layer in report.layers)
    tensors = sum(layer.noise_of_activation or 0.0 for layer in report.layers)
    whole = weights + tensors
    if not whole:
        return 'Rounding keeps the outputs from float.'
    kind, part = max(
        ('weights', weights), ('activations', tensors), key=lambda item: item[1]
    )
    worst = report.costliest(1)[0]
    cause = next((f.cause for f in report.findings if f.layer == worst.name), '')
    what = 'what layers multiply by' if kind == 'weights' else 'what layers give'
    return (
        f'{part / whole:.0%} of the noise in the outputs comes from rounding {kind} '
        f'({what}), the largest part ({worst.share or 0.0:.0%}) from '
        f'{worst.module or worst.name}. {cause}'
    )


def _untried(report: Report, likeliest: Finding) -> str:
    """What a run can say that had no time to try what helps."""
    count = 'one image' if report.images == 1 else f'{report.images} images'
    text = f'This run had no time to try what helps: it measured on {count}'
    if is_weighed(report.layers):
        return (
            f'{text}. The likeliest place is {likeliest.module}: {likeliest.cause} '
            'quant_report.py, below, measures what is to blame.'
        )
    return (
        f'{text}, and not what each layer puts into the outputs. So it cannot say '
        'which layers are to blame: those with the largest errors of their own, below, '
        'need not be. quant_report.py, below, measures that, and what helps.'
    )


def _price(line: str) -> str:
    """What a line costs, in a sentence."""
    if '16' not in line:
        return 'It costs no speed. '
    return 'A chip takes longer for numbers of 16 bits than for those of 8. '


def _can_search(report: Report) -> bool:
    """Whether a calibration may keep a score: something scored it, and none has."""
    trained = report.kind == 'training' or report.settings.get('learned_scale')
    return bool(report.scores) and not trained and not report.budget


def _searching() -> str:
    return (
        'It gives more bits to as few layers as it can, until the score is within a '
        'point of float, or says by how much it cannot. To find them it calibrates and '
        f'scores the network up to {MaxDrop.scorings} times: it takes that much '
        'longer, and needs a '
        "calibration (mode='ptq') and a validation set."
    )


def _further(report: Report) -> str:
    """What may help besides, and was not tried."""
    if report.kind == 'training' or report.settings.get('learned_scale'):
        return ''
    return (
        'Beside it finetune=True trains weights, biases and scales without labels for '
        "some minutes, and costs no speed; it takes a calibration (mode='ptq')."
    )

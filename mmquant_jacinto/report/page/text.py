"""What a page says in words: the verdict, and the table of layers."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from ..causes import next_line
from ..content import LayerReport, Report, Score

# Detectors whose outputs are further from float than this lose points; what is nearer
# loses none that their 20 images show (docs/pretrained.md).
GOOD_SNR = 25.0

COLUMNS = (
    ('name', 'layer', 'call site'),
    ('kind', 'kind', 'of the operation'),
    ('total', 'total dB', 'signal to noise in the quantized network'),
    ('own', 'own dB', 'this layer alone quantized, on float inputs'),
    ('inherited', 'inherited dB', 'what comes from upstream'),
    ('share', 'share %', "of the noise in the network's outputs"),
    ('weight_bits', 'w bits', 'width of the weight'),
    ('weight_used', 'w used', 'bits that the median channel uses'),
    ('weight_low', 'w low', 'smallest weight, normalization folded in'),
    ('weight_high', 'w high', 'largest weight'),
    ('weight_clipped', 'w clipped %', 'weights beyond the grid'),
    ('weight_zero', 'w zero', 'channels that are all zero on the grid'),
    ('weight_spread', 'w spread', 'widest channel over the median one'),
    ('weight_format', 'w format', 'of the weight'),
    ('bits', 'a bits', 'width of the output'),
    ('used', 'a used', 'bits between the ends that were seen'),
    ('low', 'a low', 'smallest number of the grid'),
    ('high', 'a high', 'largest number of the grid'),
    ('clipped', 'a clipped %', 'elements beyond the grid'),
    ('zero', 'a zero', 'channels that were zero everywhere'),
    ('spread', 'a spread', 'widest channel over the median one'),
    ('scale', 'scale', 'step of the output grid'),
    ('format', 'a format', 'of the output'),
)


class Cell(NamedTuple):
    """A cell of the table: what it shows, and what it is sorted by."""

    text: str
    value: float | None = None


def number(value: float | None, digits: str = '.3g') -> Cell:
    return Cell('–') if value is None else Cell(format(value, digits), value)


def cells(layer: LayerReport) -> list[Cell]:
    """The row of a layer, as :data:`COLUMNS` names it."""
    a, w = layer.activation, layer.weight
    share = None if layer.share is None else 100 * layer.share
    found = [Cell(layer.name), Cell(layer.kind)]
    for ratio in (layer.snr_total, layer.snr_own, layer.snr_inherited):
        found.append(number(ratio, '.1f'))
    found.append(number(share, '.1f'))
    if w is None:
        found += [Cell('')] * 8
    else:
        found += [
            number(w.bits, 'd'),
            number(w.bits_used, '.1f'),
            *(number(end) for end in w.range),
            number(100 * w.clipped, '.2f'),
            number(w.zero_channels, 'd'),
            number(w.spread, '.1f'),
            Cell(w.format),
        ]
    return [
        *found,
        number(a.bits, 'd'),
        number(a.bits_used, '.1f'),
        *(number(end) for end in a.range),
        number(100 * a.clipped, '.2f'),
        number(a.zero_channels, 'd'),
        number(a.spread, '.1f'),
        number(a.scale),
        Cell(a.format),
    ]


def verdict(report: Report) -> dict[str, Any]:
    """Sentences for the first screen."""
    trial = next_line(report.trials)
    found: dict[str, Any] = dict(headline=_headline(report), next=None, why='')
    good = bool(report.outputs) and _median(report) >= GOOD_SNR
    if trial is not None and not (good and not _lost(report)):
        found.update(
            next=trial.line,
            why=f'{_blame(report)} This line is against it; calibrate again with it:',
            proof=f'On the measured images it takes the outputs from '
            f'{trial.snr_before:.1f} to {trial.snr_after:.1f} dB ({trial.why}). '
            f'{_further(report)}',
        )
    elif report.findings and not report.trials and not good:
        # The likeliest, where there was no time to try it.
        first = report.findings[0]
        found.update(
            next=first.remedy,
            why=f'{first.module}: {first.cause} This line is against it; calibrate '
            'again with it:',
            proof='It was not tried, for want of time: quant_report.py, below, tries '
            f'what may help. {_further(report)}',
        )
    elif report.outputs:
        found['why'] = (
            'Nothing that was tried brings the outputs nearer to float by a decibel.'
            if trial is None
            else 'There is nothing that has to be done.'
        )
    return found


def _median(report: Report) -> float:
    return statistics.median(report.outputs.values())


def _headline(report: Report) -> str:
    text = _lost(report) or ''
    if report.outputs:
        median, least = _median(report), min(report.outputs.values())
        near = 'near to' if median >= GOOD_SNR else 'far from'
        text += (
            f' Its outputs are {near} float: {median:.1f} dB of signal to noise in the '
            f'median, {least:.1f} dB in the worst of {len(report.outputs)}.'
        )
    elif report.layers:
        text += ' Its outputs could not be compared with those in float.'
    return text.strip() or _scored(report) or 'Nothing was measured.'


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
    return f'{text}; nothing was measured of its layers.'


def _lost(report: Report) -> str | None:
    """What is lost against float, where that is beyond chance or not known to be."""
    scores: dict[str, dict[str, Score]] = {}
    for score in report.scores:
        scores.setdefault(score.metric, {})[score.network] = score
    for metric, found in scores.items():
        if {'float', 'quantized'} <= found.keys():
            start, end = found['float'], found['quantized']
            if end.value >= start.value:
                continue
            return (
                f'The quantized network has {metric} {end.value:.3g}, float '
                f'{start.value:.3g}.'
            )
    return None


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
    return (
        f'{part / whole:.0%} of the noise in the outputs comes from rounding {kind}, '
        f'the largest part ({worst.share or 0.0:.0%}) from '
        f'{worst.module or worst.name}. {cause}'
    )


def _further(report: Report) -> str:
    """What may help besides, and was not tried."""
    if report.kind == 'training' or report.settings.get('learned_scale'):
        return ''
    text = (
        'Beside it finetune=True trains weights, biases and scales without labels for '
        "some minutes, and costs no speed; it takes a calibration (mode='ptq')."
    )
    if not report.budget:
        text += (
            ' max_drop=0.5 finds the fewest layers that have to be raised for a score '
            'within half a point of float.'
        )
    return text

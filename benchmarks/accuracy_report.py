"""The results table, out of the results of its runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy_configs import write_whole
from accuracy_row import Row
from accuracy_rows import ROWS, bound_of
from accuracy_runs import METRICS, TITLES

# Scores are rounded to less than a bound tells apart.
DIGITS = 2
NO_BOUND = (None, None)
# Of the points lost: architecture and row, metric, low and high.
Intervals = Mapping[tuple[str, str], Mapping[str, tuple[float, float]]]
TABLE_HEAD = (
    '| row | mAP50 | mAP | lost mAP50 | lost mAP | bounds | met |',
    '| --- | --- | --- | --- | --- | --- | --- |',
)
# The table that the seed of this repository is known by.
HEADLINE = {
    'Float': 'float',
    '8 bits calibrated': 'int8_jacinto_ptq',
    '8 bits QAT': 'int8_jacinto_qat',
}


def summarize(
    results: Sequence[Mapping[str, Any]], intervals: Intervals | None = None
) -> list[dict[str, Any]]:
    """Reduce runs to means over their seeds.

    Args:
        results: The results of runs: ``arch``, ``row``, ``seed``, ``scores``.
        intervals: Of the points lost, by architecture and row, then by metric.

    Returns:
        For each architecture and row that has results ``arch``, ``row``, ``seeds``
        and for each metric a dict in percent: ``mean``, ``std`` (of a sample; None
        for one seed), ``lost`` against float in points (None without a float
        result), its ``interval`` over images, ``bound`` and whether it is ``met``
        (each None where there is none). Of QAT also ``lost_longer``: against
        float trained as long, where that was done.
    """
    summary = []
    for arch in TITLES:
        floats = scores_of(results, arch, 'float')
        longer = {
            row.epochs: scores_of(results, arch, row.name)
            for row in ROWS
            if row.kind == 'train'
        }
        for row in ROWS:
            scores = scores_of(results, arch, row.name)
            if not scores:
                continue
            entry = dict(arch=arch, row=row.name, seeds=len(scores))
            for index, metric in enumerate(METRICS):
                values = [100 * score[metric] for score in scores]
                bound = (bound_of(row, arch) or NO_BOUND)[index]
                start = 100 * floats[0][metric] if floats else None
                found = (intervals or {}).get((arch, row.name), {}).get(metric)
                entry[metric] = dict(reduce(values, start, bound), interval=found)
                fair = longer.get(row.epochs)
                if row.mode == 'qat' and fair:
                    mean = 100 * statistics.fmean(score[metric] for score in fair)
                    entry[metric]['lost_longer'] = mean - entry[metric]['mean']
            summary.append(entry)
    return summary


def scores_of(
    results: Sequence[Mapping[str, Any]], arch: str, row: str
) -> list[Mapping[str, float]]:
    """Return the scores of a row's runs."""
    return [
        result['scores']
        for result in results
        if result['arch'] == arch and result['row'] == row
    ]


def reduce(
    values: Sequence[float], start: float | None, bound: float | None
) -> dict[str, Any]:
    """Return mean, spread and loss of one metric, see :func:`summarize`."""
    mean = statistics.fmean(values)
    lost = None if start is None else start - mean
    checked = bound is not None and lost is not None
    return dict(
        mean=mean,
        std=statistics.stdev(values) if len(values) > 1 else None,
        lost=lost,
        bound=bound,
        met=lost <= bound if checked else None,
    )


def write_report(
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    folder: Path,
    intervals: Intervals | None = None,
) -> list[dict[str, Any]]:
    """Write ``results.json`` and ``results_table.md``, and return the summary.

    Args:
        settings: What all runs have in common.
        results: The results of the runs.
        folder: Where the files go.
        intervals: See :func:`summarize`.
    """
    summary = summarize(results, intervals)
    content = dict(settings=settings, summary=summary, runs=list(results))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / 'results.json', json.dumps(content, indent=1) + '\n')
    write_whole(folder / 'results_table.md', table(settings, summary))
    return summary


def table(settings: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables in Markdown: the seed's, then one for each architecture."""
    found = {(entry['arch'], entry['row']): entry for entry in summary}
    archs = [arch for arch in TITLES if any(key[0] == arch for key in found)]
    lines = [
        '<!-- Written by benchmarks/accuracy.py; do not edit. -->',
        '',
        f'{settings["data"]}: {settings["train_images"]} training and '
        f'{settings["test_images"]} test images at {settings["input_size"]} x '
        f'{settings["input_size"]}; {settings["float_epochs"]} epochs in float, '
        f'{settings["qat_epochs"]} more in QAT. mAP50 · mAP 0.50:0.95 in percent.',
        'After ±: the standard deviation over seeds; in brackets: the 95 % interval of',
        'the points lost, from resampled test images.',
        '',
        f'| model | {" | ".join(HEADLINE)} |',
        '| --- ' * (1 + len(HEADLINE)) + '|',
    ]
    for arch in archs:
        cells = [score_cell(found.get((arch, row))) for row in HEADLINE.values()]
        lines.append(f'| SSD-FPN {TITLES[arch]} | {" | ".join(cells)} |')
    for arch in archs:
        lines += ['', f'### {TITLES[arch]}', '']
        lines += TABLE_HEAD
        rows = [row for row in ROWS if (arch, row.name) in found]
        main = [row for row in rows if not row.ablation]
        lines += [table_row(row, found[arch, row.name]) for row in main]
        lines += longer_lines([found[arch, row.name] for row in main])
        switches = [row for row in rows if row.ablation]
        if switches:
            lines += ['', 'Other targets and switches of calibration:', '']
            lines += TABLE_HEAD
            lines += [table_row(row, found[arch, row.name]) for row in switches]
    return '\n'.join(lines) + '\n'


def score_cell(entry: Mapping[str, Any] | None) -> str:
    """Both means of a row, for the seed's table."""
    if entry is None:
        return ''
    return ' · '.join(f'{entry[metric]["mean"]:.1f}' for metric in METRICS)


def longer_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what QAT loses against float trained as long, a sentence."""
    titles = {row.name: row.title for row in ROWS}
    parts = []
    for entry in entries:
        if 'lost_longer' in entry['mAP']:
            lost = (f'{entry[metric]["lost_longer"]:.{DIGITS}f}' for metric in METRICS)
            parts.append(f'{titles[entry["row"]]} {" · ".join(lost)}')
    if not parts:
        return []
    return ['', f'Lost against float that was trained as long: {"; ".join(parts)}.']


def table_row(row: Row, entry: Mapping[str, Any]) -> str:
    """Return a row of an architecture's table."""
    cells = [row.title]
    metrics = [entry[metric] for metric in METRICS]
    for metric in metrics:
        spread = '' if metric['std'] is None else f' ± {metric["std"]:.{DIGITS}f}'
        cells.append(f'{metric["mean"]:.{DIGITS}f}{spread}')
    for metric in metrics:
        cells.append('' if metric['lost'] is None else f'{metric["lost"]:.{DIGITS}f}')
        if metric['interval']:
            low, high = metric['interval']
            cells[-1] += f' [{low:.{DIGITS}f}, {high:.{DIGITS}f}]'
    bounds = [metric['bound'] for metric in metrics]
    if bounds == list(NO_BOUND):
        cells += ['', '']
    else:
        cells.append(' · '.join('–' if it is None else f'{it:g}' for it in bounds))
        met = {True: 'yes', False: 'no', None: '–'}
        cells.append(' · '.join(met[metric['met']] for metric in metrics))
    return f'| {" | ".join(cells)} |'

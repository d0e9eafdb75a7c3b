"""The matrix of libraries."""

from collections import Counter
from pathlib import Path
from typing import Any

from zoo.outputs import UNSEEN
from zoo.report import (
    BOUNDS,
    _exports,
    _in_float,
    _section,
    shortfalls,
    table_row,
)

from .imports import LIBRARIES

# Why a model falls short by itself, by a part of its config's name.
EXPLANATIONS = {
    'pointpillars': 'What its pillars are encoded from reaches over metres and shares '
    'of a metre in one tensor: at 8 bits little is left of the shares',
    'smoke': 'An orientation is the direction of a vector, which with random weights '
    'is nearly zero in some places: noise turns it there, and the few that turn most '
    'make the number',
}
HARDLY = -40.0  # dB
COMMAND = (
    'python tools/sweep_libraries.py --json docs/libraries.json '
    '--table docs/libraries.md'
)
INTRODUCTION = """# OpenMMLab's other libraries, quantized

Written by `{command}`; do not edit. {versions}.

Each model is built from its library's own config with random weights, on one CPU
thread, and examined as [the zoo of MMDetection](zoo.md) is: *16 bits* and *8 bits*
are the signal to quantization noise of the head output that has the least, in dB, in
integers, for `onnxruntime`, with ranges from the same batch; the bounds are
{bounds[16]:.0f} and {bounds[8]:.0f} dB. *Gain*: what the float model does to noise in
its image. *QAT*: one training step has a finite loss, and the same parameters get
gradients as in float. *Reload*: a checkpoint gives the same predictions, bit for bit.
*Export*: the share of the file's outputs that ONNX Runtime computes equal to the
integer model on images that gave no ranges. *Runner*: `tools/train.py` in QAT, then
in calibration, `tools/export.py` with its proof, `tools/test.py` of checkpoint and
file, on data in the library's own layout: of how many images both predict the same,
bit for bit (`--runner`, one config of each library).

`make test-libraries` builds the environment (`requirements/libraries.txt`; what mends
the imports is in `tools/libraries/imports.py`) and tests the last column.

Of which version of the code a row is, `engine` says in `docs/libraries.json`: a number
for the sources of the package and of the sweep. {engines}

{counts}
"""


def write_table(reports: list[dict[str, Any]], path: Path, versions: str) -> None:
    """Writes the table in Markdown.

    Args:
        reports (List[dict]): Of ``zoo.check.examine``, with columns.
        path (Path): Where to.
        versions (str): Of the libraries.
    """
    order = list(LIBRARIES)
    reports = sorted(
        reports,
        key=lambda row: (order.index(row['config'].partition('/')[0]), row['config']),
    )
    ran = [row for row in reports if row.get('status') == 'ok']
    failed = [row for row in reports if row.get('status') == 'failed']
    absent = [row for row in reports if row.get('status') == 'no float']
    counts = Counter(row['config'].partition('/')[0] for row in ran)
    text = ', '.join(f'{LIBRARIES[name]} {count}' for name, count in counts.items())
    lines = [
        INTRODUCTION.format(
            command=COMMAND,
            versions=versions,
            bounds={int(bits): bound for bits, bound in BOUNDS.items()},
            engines=_engines(reports),
            counts=f'{len(reports)} configs: {len(ran)} run quantized ({text}); '
            f'{len(failed)} do not; {len(absent)} do not run in float here.',
        ),
        '| config | in float | 16 bits | 8 bits | gain | QAT | reload | export '
        '| runner |',
        '| --- | ' + '--: | ' * 4 + '--- | --- | --: | --: |',
        *(table_row(report, [], 'runner') for report in ran),
        '',
        *_section('Shortfalls', {r['config']: _shortfalls(r) for r in ran}),
        *_section(
            'Outputs that other images hardly change',
            {r['config']: _hardly_seen(r) for r in ran},
        ),
        *_section('Not quantized', {r['config']: _failure(r) for r in failed}),
        *_section('Not in float here', {r['config']: _failure(r) for r in absent}),
        *_exports(ran),
        *_section('Not through the runner', _not_through(reports)),
        *_section(
            'No loss here, so no QAT step',
            {r['config']: r.get('no loss', '') for r in ran},
        ),
        *_in_float(ran),
    ]
    path.write_text('\n'.join(lines).rstrip() + '\n')


def _engines(reports: list[dict[str, Any]]) -> str:
    """Which versions of the code rows are of, and the column of the runner."""
    rows = Counter(report['engine'] for report in reports)
    runs = Counter(r['runner']['engine'] for r in reports if 'runner' in r)
    texts = [
        ', '.join(f'{engine} ({count})' for engine, count in found.most_common())
        for found in (rows, runs)
    ]
    return f'Rows are of {texts[0]}' + (
        f'; their last column of {texts[1]}.' if runs else '.'
    )


def _shortfalls(report: dict[str, Any]) -> str:
    found = shortfalls(report)
    for part, text in EXPLANATIONS.items():
        if found and part in report['config']:
            found.append(text)
    return '; '.join(found)


def _hardly_seen(report: dict[str, Any]) -> str:
    """What noise is beside the part of an output that an image decides."""
    found = []
    for name, change in report.get('seen', {}).items():
        wide = report['sqnr']['16']['heads'].get(name)
        if change >= HARDLY or wide is None:
            continue
        if change <= UNSEEN:
            text = 'is the same for all, so that its signal to noise says nothing'
        else:
            text = (
                f'changes by {change} dB of its power; beside that change the noise '
                f'of 16 bits has {wide + change:.1f} dB'
            )
        found.append(f'`{name}` {text}')
    return '; '.join(found)


def _failure(report: dict[str, Any]) -> str:
    return f'{report.get("failed", "")}: {report["error"]}'


def _not_through(reports: list[dict[str, Any]]) -> dict[str, str]:
    found = {}
    for report in reports:
        item = report.get('runner', {})
        if 'reason' in item:
            found[report['config']] = item['reason']
        elif item.get('equal', 0) < item.get('images', 0):
            found[report['config']] = 'predictions differ'
    return found

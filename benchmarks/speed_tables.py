"""Writes the tables of ``docs/speed.md`` from what the benchmarks kept as JSON.

python benchmarks/speed_tables.py
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable

from timed_networks import LABELS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results'
PAGE = ROOT / 'docs/speed.md'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers with two decimals."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(
        '| '
        + ' | '.join(f'{x:.2f}' if isinstance(x, float) else str(x) for x in line)
        + ' |'
        for line in lines
    )


def of_steps(found: dict[str, Any]) -> str:
    """QAT step / float step, and calibration / float inference."""
    columns = ('live', 'settled', 'frozen', 'ranges', 'biases', 'preparation')
    head = ['', 'QAT, first 128 steps', 'QAT, later', 'QAT, frozen']
    head += ['calibration: ranges', 'calibration: biases']
    head += ['preparation (float forwards)']
    rows = [
        [LABELS[name], *(row[column] for column in columns)]
        for name, row in found['models'].items()
    ]
    return table(head, rows)


def of_parts(found: dict[str, Any]) -> str:
    """What each part of a step adds to float."""
    head = ['', 'size', 'QAT: watched', 'grids', 'ranges']
    head += ['calibration: watched', 'ranges', 'robust means']
    columns = [
        *(('training', key) for key in ('watched', 'grids', 'observed')),
        *(('calibration', key) for key in ('watched', 'observed', 'moments')),
    ]
    rows = [
        [LABELS[name], size, *(found[kind][key] for kind, key in columns)]
        for name, sizes in found['models'].items()
        for size, found in sizes.items()
    ]
    return table(head, rows)


def of_evaluation(found: dict[str, Any]) -> str:
    """Test on integers / float inference."""
    cases = [
        (target, batch)
        for target, by_batch in next(iter(found['models'].values())).items()
        for batch in by_batch
    ]
    rows = [
        [LABELS[name], *(row[target][batch]['integer'] for target, batch in cases)]
        for name, row in found['models'].items()
    ]
    return table(['', *(f'`{target}`, batch {b}' for target, b in cases)], rows)


def of_memory(found: dict[str, Any]) -> str:
    """Peaks above the built model."""
    columns = ('live', 'settled', 'frozen', 'ranges', 'biases', 'test')
    head = ['', 'float step, MiB', 'QAT, first 128 steps', 'QAT, later', 'QAT, frozen']
    head += ['calibration: ranges', 'calibration: biases', 'test on integers']
    rows = [
        [LABELS[name], round(row['float_mib']), *(row[column] for column in columns)]
        for name, row in found['models'].items()
    ]
    return table(head, rows)


def of_growth(found: dict[str, Any]) -> str:
    """What each layer takes, by number of layers."""
    head = ['layers', 'preparation, ms a layer', 'step beyond float, ms a layer']
    rows = [
        [count, row['preparation_ms'], row['step_ms'], round(row['state_bytes'])]
        for count, row in found['layers'].items()
    ]
    return table([*head, 'state beyond float, bytes a layer'], rows)


def of_processes(found: dict[str, Any]) -> str:
    """A step and its collectives, by number of processes."""
    rows = [
        [count, row['step_ms'], row['collectives']]
        for count, row in found['processes'].items()
    ]
    return table(['processes', 'step, ms of processor time', 'collectives'], rows)


def of_tuning(found: dict[str, Any]) -> str:
    """Iterations of fine-tuning, and rounding of whole networks."""
    head = ['', 'fine-tuning: an iteration ÷ a float forward pass']
    head += ['its longest parts', 'coordinate descent, s (ms a layer)']
    head += ['AdaRound, s (ms a layer)']
    rows = []
    for name, row in found['models'].items():
        shares = list(row['finetuning']['shares'].items())[:3]
        parts = ', '.join(f'`{key}` {100 * share:.0f} %' for key, share in shares)
        cells = [
            f'{row[method]["seconds"]:.0f} ({row[method]["median_ms"]:.0f})'
            for method in ('coordinate_descent', 'adaround')
        ]
        rows.append([LABELS[name], row['finetuning']['iteration'], parts, *cells])
    return table(head, rows)


# By the name of a table's marks in the page.
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    'steps': ('step_time_cpu.json', of_steps),
    'parts': ('step_parts.json', of_parts),
    'small steps': ('step_time_small.json', of_steps),
    'evaluation': ('evaluation_time.json', of_evaluation),
    'memory': ('memory_cpu.json', of_memory),
    'growth': ('growth_cpu.json', of_growth),
    'tuning': ('tuning_time.json', of_tuning),
    'processes': ('growth_cpu.json', of_processes),
}


def main() -> None:
    text = PAGE.read_text()
    for name, (file, make) in TABLES.items():
        start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        before, rest = text.split(start)
        after = rest.split(end)[1]
        made = make(json.loads((RESULTS / file).read_text()))
        text = f'{before}{start}\n{made}\n{end}{after}'
    PAGE.write_text(text)


if __name__ == '__main__':
    main()

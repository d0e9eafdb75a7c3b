"""What keeping a budget takes: layers raised, networks scored, minutes, final drop.

    MMQUANT_PRETRAINED=/path python benchmarks/budget.py \
        configs/pretrained/yolox_nano.py configs/pretrained/ssd_mobilenetv2.py \
        --points 1.0 --json benchmarks/results/budget.json --table table.md

Calibrates each config's network with quantize.max_drop. A run that was cut off goes on
where it was with --resume. --report-only writes the table of what the JSON has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import write_whole
from mmengine.config import Config
from mmengine.runner import Runner

from mmquant_jacinto.config.max_drop import FILE


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', type=Path)
    parser.add_argument('--target', default='jacinto')
    parser.add_argument('--points', type=float, default=1.0)
    parser.add_argument('--bits', type=int, default=8)
    parser.add_argument('--checkpoint', help='in place of the load_from of the config')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--report-only', action='store_true')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/budget'))
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    args = parser.parse_args(arguments)
    if args.report_only == bool(args.configs):
        parser.error('give configs, or --report-only without one')
    return args


def run(path: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Calibrate a config's network within the budget; return what was found."""
    cfg = Config.fromfile(path)
    cfg.setdefault('runner_type', 'QuantRunner')
    cfg.work_dir = str(folder)
    if args.checkpoint:
        cfg.load_from = args.checkpoint
    if args.resume:
        # As the usual tools do: the run knows what it started from.
        cfg.resume, cfg.load_from = True, None
    cfg.quantize = dict(
        mode='ptq', target=args.target, bits=args.bits, max_drop=args.points
    )
    start = time.monotonic()
    Runner.from_cfg(cfg).train()
    seconds = time.monotonic() - start
    found = json.loads((folder / FILE).read_text())
    trials = [
        {key: value for key, value in trial.items() if key != 'key'}
        for trial in found['trials']
    ]
    return dict(
        target=args.target,
        bits=args.bits,
        threads=torch.get_num_threads(),
        minutes=round(seconds / 60, 1),
        **{key: found[key] for key in ('settings', 'metric', 'float', 'final', 'drop')},
        **{key: found[key] for key in ('met', 'layers', 'remedies')},
        trials=trials,
    )


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        '| network | target | budget | float | all at the start | kept | drop | raised '
        '| in float | scorings | minutes |',
        '| --- ' * 11 + '|',
    ]
    for name, row in rows.items():
        unit = 100 if row['float'] <= 1 else 1
        in_float = sum(value is False for value in row['layers'].values())
        cells = [
            name,
            row['target'],
            f'{row["settings"]["points"]:g}',
            *(
                f'{unit * score:.1f}'
                for score in (row['float'], row['trials'][0]['score'], row['final'])
            ),
            f'{row["drop"]:.2f}' + ('' if row['met'] else ' (not met)'),
            str(len(row['layers']) - in_float),
            str(in_float),
            str(len(row['trials'])),
            f'{row["minutes"]:g}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    args = parse_args()
    rows = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for path in args.configs:
        folder = args.out / f'{path.stem}_{args.target}_{args.bits}_{args.points:g}'
        rows[f'{path.stem} {args.target} {args.points:g}'] = run(path, folder, args)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.json, json.dumps(rows, indent=1) + '\n')
    print(table(rows), end='')
    if args.table is not None:
        write_whole(args.table, table(rows))


if __name__ == '__main__':
    main()

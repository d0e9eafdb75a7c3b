"""What keeping a budget takes: layers raised, networks scored, minutes, final score.

    MMQUANT_PRETRAINED=/path python benchmarks/budget.py \
        configs/pretrained/yolox_nano.py configs/pretrained/ssd_mobilenetv2.py \
        --points 1.0 --json benchmarks/results/budget.json --table table.md

Calibrates each config's network with quantize.max_drop, or with --latency FACTORS with
quantize.mixed_precision, and with nothing raised. With --train it first trains the
network in float: configs of ``benchmarks/detectors`` do so in minutes. A run that was
cut off goes on where it was with --resume. --report-only writes the table of what the
JSON has.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import write_rows, write_whole
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.runner import Runner

from mmquant_jacinto.config.max_drop import FILE
from mmquant_jacinto.config.mixed_precision import FILE as WIDTHS_FILE


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', type=Path)
    parser.add_argument('--target', default='jacinto')
    parser.add_argument('--points', type=float, default=1.0)
    parser.add_argument('--metric', help="in place of the evaluator's first one")
    parser.add_argument(
        '--latency', type=float, nargs='+', default=[], help='in place of --points'
    )
    parser.add_argument('--bits', type=int, default=8)
    parser.add_argument('--checkpoint', help='in place of the load_from of the config')
    parser.add_argument(
        '--train',
        action='store_true',
        help='the weights are those of a float training by the config, made first',
    )
    parser.add_argument('--resume', action='store_true')
    parser.add_argument(
        '--so-far', action='store_true', help='rows of searches that have not ended'
    )
    parser.add_argument('--report-only', action='store_true')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/budget'))
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    args = parser.parse_args(arguments)
    if args.report_only == bool(args.configs):
        parser.error('give configs, or --report-only without one')
    return args


def train_float(path: Path) -> str:
    """Train a config's network in float, unless that is done; return its weights."""
    cfg = Config.fromfile(path)
    last = Path(cfg.work_dir, f'epoch_{cfg.train_cfg.max_epochs}.pth')
    if not last.is_file():
        Runner.from_cfg(cfg).train()
    return str(last)


def calibrate(
    path: Path, folder: Path, args: argparse.Namespace, **budget: Any
) -> dict[str, float]:
    """Calibrate a config's network within a budget; return the minutes it took."""
    cfg = Config.fromfile(path)
    cfg.setdefault('runner_type', 'QuantRunner')
    cfg.work_dir = str(folder)
    if args.checkpoint or args.train:
        cfg.load_from = args.checkpoint or train_float(path)
    if args.resume:
        # As the usual tools do: the run knows what it started from.
        cfg.resume, cfg.load_from = True, None
    cfg.quantize = dict(mode='ptq', target=args.target, bits=args.bits, **budget)
    wall, processor = time.monotonic(), time.process_time()
    Runner.from_cfg(cfg).train()
    return dict(
        minutes=round((time.monotonic() - wall) / 60, 1),
        processor_minutes=round((time.process_time() - processor) / 60, 1),
    )


def run(path: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Keep a budget of accuracy; return what was found."""
    took = dict(minutes=0.0)
    if not args.so_far:
        budget = dict(points=args.points, metric=args.metric)
        took = calibrate(path, folder, args, max_drop=budget)
    # A resumed search says what it took before, too.
    found = json.loads((folder / FILE).read_text())
    if not found['finished']:
        found.update(best_so_far(found))
    trials = [
        {key: value for key, value in trial.items() if key != 'key'}
        for trial in found['trials']
    ]
    return dict(
        target=args.target,
        bits=args.bits,
        threads=torch.get_num_threads(),
        **dict(took, minutes=max(took['minutes'], round(found['seconds'] / 60, 1))),
        **{key: found[key] for key in ('settings', 'metric', 'float', 'final', 'drop')},
        **{key: found[key] for key in ('met', 'layers', 'remedies', 'finished')},
        trials=trials,
    )


def best_so_far(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a search that has not ended would keep: the least raised, or the best."""
    points = found['settings']['points']
    kept = [trial for trial in found['trials'] if trial['drop'] <= points]
    if kept:
        best = min(kept, key=lambda t: (t['in_float'], t['raised'], t['drop']))
    else:
        best = min(found['trials'], key=lambda trial: trial['drop'])
    layers, remedies = json.loads(best['key'])
    return dict(
        layers=layers,
        remedies=remedies,
        final=best['score'],
        drop=best['drop'],
        met=bool(kept),
    )


def run_latency(
    path: Path, folder: Path, args: argparse.Namespace, latency: float | None
) -> dict[str, Any]:
    """Keep a budget of time, None with nothing raised; return what was found."""
    budget = {} if latency is None else dict(mixed_precision=dict(latency=latency))
    took = calibrate(path, folder, args, **budget)
    scalars = MessageHub.get_current_instance().log_scalars
    scores = {
        name.partition('/')[2]: float(scalars[name].current())
        for name in scalars
        if name.startswith('val/') and not name.endswith('time')
    }
    found: dict[str, Any] = dict(latency=1.0, layers={}, settings={})
    if latency is not None:
        found = json.loads((folder / WIDTHS_FILE).read_text())
    return dict(
        target=args.target,
        bits=args.bits,
        threads=torch.get_num_threads(),
        **took,
        **{key: found[key] for key in ('settings', 'latency', 'layers')},
        scores=scores,
    )


def latency_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of budgets of time, in Markdown."""
    lines = [
        '| network | target | budget | operations by width | weights raised '
        '| activations raised | first score | minutes |',
        '| --- ' * 8 + '|',
    ]
    for name, row in rows.items():
        kinds = [kind for value in row['layers'].values() for kind in value]
        cells = [
            *(name, row['target'], f'{row["settings"].get("latency", 1):g}'),
            f'{row["latency"]:.2f}',
            *(str(kinds.count(kind)) for kind in ('weight', 'activation')),
            f'{next(iter(row["scores"].values())):.3f}',
            f'{row["minutes"]:g}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def tables(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables in Markdown, each if it has a row."""
    by_score = {name: row for name, row in rows.items() if 'trials' in row}
    by_time = {name: row for name, row in rows.items() if name not in by_score}
    found = [table(by_score)] * bool(by_score)
    return '\n'.join(found + [latency_table(by_time)] * bool(by_time))


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        '| network | target | budget | float | all at the start | kept | drop | raised '
        '| in float | scorings | minutes | of the processor |',
        '| --- ' * 12 + '|',
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
            str(len(row['trials'])) + ' so far' * (not row.get('finished', True)),
            f'{row["minutes"]:g}',
            f'{row["processor_minutes"]:g}' if 'processor_minutes' in row else '–',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    args = parse_args()
    rows = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for path in args.configs:
        start = args.out / f'{path.stem}_{args.target}_{args.bits}'
        name = f'{path.stem} {args.target}'
        for latency in (None, *args.latency) if args.latency else ():
            label = f'latency {latency or 1:g}'
            folder = Path(f'{start}_{label.replace(" ", "_")}')
            rows[f'{name} {label}'] = run_latency(path, folder, args, latency)
            write_rows(args.json, rows)
        if not args.latency:
            folder = Path(f'{start}_{args.points:g}')
            rows[f'{name} {args.points:g}'] = run(path, folder, args)
            write_rows(args.json, rows)
    print(tables(rows), end='')
    if args.table is not None:
        write_whole(args.table, tables(rows))


if __name__ == '__main__':
    main()

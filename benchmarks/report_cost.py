"""What a report costs: seconds of it and of its run, by length of the run.

    python benchmarks/report_cost.py configs/pretrained/yolox_nano.py \
        configs/bccd/ssd_mobilenet_fpn.py --images 16 64 256 --repeats 3 \
        --json benchmarks/results/report_cost.json --table table.md

Calibrates each config's network on so many images, and tests the last checkpoint; each
leaves a report. Weights do not matter: without --checkpoint a config without load_from
has random ones. Sets with fewer images give one row. Shares are of the clock, which
counts what else a machine does, and of the processor's time in this process.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accuracy_configs import write_rows, write_whole
from mmengine.config import Config
from mmengine.runner import Runner, TestLoop

from mmquant_jacinto.hooks.report_hook import ReportHook
from mmquant_jacinto.runners.calibration_loop import CalibrationLoop

TARGET = 'jacinto'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--images', type=int, nargs='+', default=[16, 64, 256])
    parser.add_argument(
        '--repeats', type=int, default=1, help='runs, of which a row is the median'
    )
    parser.add_argument('--checkpoint', help='in place of the load_from of the config')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/report_cost'))
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    return parser.parse_args(arguments)


def build(path: Path, folder: Path, images: int, checkpoint: str | None) -> Runner:
    """The runner of a config's network, on so many images."""
    cfg = Config.fromfile(path)
    cfg.runner_type = 'QuantRunner'
    cfg.work_dir = str(folder)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[name].update(num_workers=0, persistent_workers=False)
    if checkpoint:
        cfg.load_from = checkpoint
    calibration = dict(num_images=images)
    cfg.quantize = dict(mode='ptq', target=TARGET, calibration=calibration)
    return Runner.from_cfg(cfg)


@contextmanager
def processor_times() -> Iterator[dict[str, float]]:
    """Seconds of the processor that calibrating, testing and reporting take."""
    found: dict[str, float] = {}

    def timed(name: str, method: Any) -> Any:
        def run(*args: Any) -> Any:
            start = time.process_time()
            try:
                return method(*args)
            finally:
                found[name] = found.get(name, 0.0) + time.process_time() - start

        return run

    parts = (
        ('run', CalibrationLoop, '_calibrate'),
        ('run', TestLoop, 'run'),
        ('report', ReportHook, '_report'),
    )
    with ExitStack() as stack:
        for name, owner, method in parts:
            patched = timed(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, patched))
        yield found


def cost_of(runner: Runner, images: int, times: Mapping[str, float]) -> dict[str, Any]:
    """What the report of a run took."""
    hook = next(item for item in runner.hooks if isinstance(item, ReportHook))
    page = Path(runner.log_dir, 'report.html')
    report = json.loads(page.with_suffix('.json').read_text())
    # A test's loop ends behind its hooks.
    inside = times['report'] if report['kind'] == 'test' else 0.0
    return dict(
        kind=report['kind'],
        images=images,
        threads=torch.get_num_threads(),
        run_seconds=round(hook.run_seconds, 2),
        report_seconds=round(hook.seconds, 2),
        share=round(hook.seconds / hook.run_seconds, 4),
        run_processor=round(times['run'] - inside, 2),
        report_processor=round(times['report'], 2),
        layers=len(report['layers']),
        measured=report['images'],
        trials=len(report['trials']),
        pictures=page.read_text().count('data:image/jpeg'),
        kilobytes=page.stat().st_size // 1000,
    )


def calibrate(
    path: Path, folder: Path, images: int, checkpoint: str | None
) -> dict[str, Any]:
    """Calibrate; return what the report took."""
    runner = build(path, folder, images, checkpoint)
    with processor_times() as times:
        runner.train()
    seen = min(images, len(runner.train_loop.dataloader.dataset))
    return cost_of(runner, seen, times)


def scored(path: Path, folder: Path, images: int) -> dict[str, Any]:
    """Test what was calibrated last; return what the report took."""
    runner = build(path, folder, images, str(folder / 'epoch_1.pth'))
    with processor_times() as times:
        runner.test()
    return cost_of(runner, len(runner.test_loop.dataloader.dataset), times)


def median(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """The row whose share of the processor's time is the median."""
    shares = [row['report_processor'] / row['run_processor'] for row in costs]
    order = sorted(range(len(costs)), key=shares.__getitem__)
    row = costs[order[len(order) // 2]]
    return dict(row, shares=[round(shares[place], 4) for place in order])


def table(rows: Mapping[str, list[Mapping[str, Any]]]) -> str:
    """The table in Markdown."""
    lines = [
        '| network | run | images | run, s | report, s | share | of the processor '
        '| measured on | trials |',
        '| --- ' * 9 + '|',
    ]
    for name, found in rows.items():
        for row in found:
            cells = [
                *(name, row['kind'], str(row['images'])),
                f'{row["run_seconds"]:.1f}',
                f'{row["report_seconds"]:.1f}',
                f'{row["share"]:.0%}',
                _of_processor(row),
                f'{row["measured"]} image{"" if row["measured"] == 1 else "s"}',
                str(row['trials']),
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _of_processor(row: Mapping[str, Any]) -> str:
    if 'run_processor' not in row:
        return '–'
    run, report = row['run_processor'], row['report_processor']
    return f'{report:.1f} of {run:.1f} s, {report / run:.0%}'


def main() -> None:
    args = parse_args()
    rows = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for path in args.configs:
        rows[path.stem] = []
        known: set[int] = set()
        for images in args.images:
            folder = args.out / f'{path.stem}_{images}'
            run = partial(calibrate, path, folder, images, args.checkpoint)
            costs = [run()]
            if costs[0]['images'] in known:
                break
            known.add(costs[0]['images'])
            costs += [run() for _ in range(args.repeats - 1)]
            rows[path.stem].append(median(costs))
        costs = [scored(path, folder, images) for _ in range(args.repeats)]
        rows[path.stem].append(median(costs))
        write_rows(args.json, rows)
    print(table(rows), end='')
    if args.table is not None:
        write_whole(args.table, table(rows))


if __name__ == '__main__':
    main()

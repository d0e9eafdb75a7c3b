"""The results table: what quantization costs, in one command.

For each architecture: trains the float detector, makes its hostile twin, calibrates
and trains it quantized in every way of accuracy_rows.py, each with several seeds,
and writes the table. A second run takes over what an earlier one finished, and
goes on with what it was killed in.

    python benchmarks/accuracy.py                          # hours, on 2 cores
    python benchmarks/accuracy.py --archs mobilenet --rows 'int8*' --seeds 0
    python benchmarks/accuracy.py --report-only --report docs
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from accuracy_configs import ROOT, relative, write_whole
from accuracy_report import write_report
from accuracy_row import Row
from accuracy_rows import ROWS
from accuracy_runs import (
    ARCHS,
    TITLES,
    Run,
    RunError,
    Setup,
    locked,
    make_twin,
    train_float,
)
from pretrained_networks import find_folder

sys.path.insert(0, str(ROOT / 'demo'))

from process_settings import set_process_defaults
from voc_folder import VOCFolder, read_split, read_voc_folder

BCCD = ROOT.parent / 'shared' / 'data' / 'bccd'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--archs',
        nargs='+',
        default=ARCHS,
        metavar='ARCH',
        help=f'of {", ".join(TITLES)}; default: {", ".join(ARCHS)}',
    )
    parser.add_argument(
        '--rows',
        nargs='+',
        default=['*'],
        metavar='PATTERN',
        help='rows of the table; --list names them all',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--data',
        type=Path,
        help='data in VOC layout (default: BCCD, at $BCCD_ROOT or beside the '
        'repository)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'work_dirs' / 'accuracy',
        help='where the runs go (default: work_dirs/accuracy)',
    )
    parser.add_argument(
        '--report',
        type=Path,
        metavar='FOLDER',
        help='where results.json, results_table.md and the plots go (default: OUT)',
    )
    parser.add_argument('--input-size', type=int, default=256)
    parser.add_argument('--float-epochs', type=int, default=30)
    parser.add_argument('--qat-epochs', type=int, default=12)
    parser.add_argument(
        '--threads', type=int, default=os.cpu_count(), help='of torch; default: all'
    )
    parser.add_argument(
        '--keep', action='store_true', help='keep the checkpoints of finished runs'
    )
    parser.add_argument(
        '--list', action='store_true', help='say which runs there are, and stop'
    )
    parser.add_argument(
        '--report-only', action='store_true', help='write the table of what is finished'
    )
    return parser.parse_args(arguments)


def select_rows(patterns: list[str]) -> list[Row]:
    """Return the rows that patterns name, in the order of the table.

    Raises:
        SystemExit: If a pattern names none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in ROWS):
            names = ', '.join(row.name for row in ROWS)
            raise SystemExit(f'error: no row is called {pattern!r}; there are {names}')
    return [
        row
        for row in ROWS
        if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)
    ]


def select_archs(names: list[str]) -> list[str]:
    """Return the architectures, without repetitions.

    Raises:
        SystemExit: If there is no such architecture, or no checkpoint to start it from.
    """
    for name in names:
        if name not in TITLES:
            raise SystemExit(
                f'error: no architecture is called {name!r}; there are '
                + ', '.join(TITLES)
            )
    if 'mobilenet_imagenet' in names:
        find_folder('mobilenet_v2_imagenet.pth')
    return list(dict.fromkeys(names))


def find_data(given: Path | None) -> VOCFolder:
    """Return the data to use: what is given, or BCCD.

    Raises:
        SystemExit: If it is not there.
    """
    if given is not None:
        return read_voc_folder(given.resolve())
    path = Path(os.environ.get('BCCD_ROOT') or BCCD)
    if not path.is_dir():
        raise SystemExit(
            f'error: {path} is not there; set BCCD_ROOT to BCCD in VOC layout, or '
            'choose other data with --data'
        )
    os.environ['BCCD_ROOT'] = str(path.resolve())
    return read_voc_folder(path)


def data_options(data: VOCFolder) -> dict[str, Any]:
    """Return the keys that make the configs of BCCD read another data set."""
    dataset = dict(
        data_root=str(data.root),
        # the colors of BCCD are three, and there must be one for each class
        metainfo=dict(
            classes=data.classes, palette=[(220, 20, 60)] * len(data.classes)
        ),
    )
    loaders = {
        name: dict(dataset=dict(dataset, ann_file=f'ImageSets/Main/{split}.txt'))
        for name, split in (
            ('train_dataloader', data.train_split),
            ('val_dataloader', data.test_split),
            ('test_dataloader', data.test_split),
        )
    }
    head = dict(bbox_head=dict(num_classes=len(data.classes)))
    return dict(classes=data.classes, model=head, **loaders)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix the results of this run with those of a different one.

    Raises:
        SystemExit: If the folder has results with other settings.
    """
    path = folder / 'settings.json'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(settings, indent=1) + '\n')
        return
    known = json.loads(path.read_text())
    for key, value in settings.items():
        if known.get(key) != value:
            raise SystemExit(
                f'error: {relative(folder)} has results with {key}={known.get(key)!r}, '
                f'not {value!r}; choose another folder with --out'
            )


def select_runs(
    setup: Setup, archs: list[str], rows: list[Row], seeds: list[int]
) -> list[Run]:
    """Return the runs in the order they are made in: a seed of all rows, the next."""
    return [
        # a test has no seed; it is made once
        Run(setup, arch, row, 0 if row.kind == 'test' else seed)
        for arch in archs
        for number, seed in enumerate(seeds)
        for row in rows
        if number == 0 or row.kind != 'test'
    ]


def state_of(run: Run) -> str:
    """Return what ``--list`` says of a run."""
    try:
        return 'finished' if run.read() else ''
    except RunError:
        return 'finished or begun with other settings'


def execute(setup: Setup, runs: list[Run]) -> list[str]:
    """Make the runs that are not finished; return what failed.

    A run that fails does not keep the others from being made.
    """
    failures = []
    for arch in dict.fromkeys(run.arch for run in runs):
        mine = [run for run in runs if run.arch == arch]
        try:
            with locked(setup.folder / arch) as lock:
                say(f'{arch}: float training')
                train_float(setup, arch, lock)
                if any(run.row.twin for run in mine):
                    make_twin(setup, arch, lock)
                for number, run in enumerate(mine, 1):
                    failures += execute_one(run, lock, f'[{number}/{len(mine)}]')
        except RunError as error:
            failures.append(f'{arch}: {error}')
            say(f'error: {failures[-1]}')
    return failures


def execute_one(run: Run, lock: int, number: str) -> list[str]:
    """Make a run unless it is finished, and say so; return what failed."""
    try:
        found = run.read()
        result = found or run.execute(lock)
    except RunError as error:
        say(f'{number} {run.name}: error: {error}')
        return [f'{run.name}: {error}']
    scores = ', '.join(f'{k} {100 * v:.2f}' for k, v in result['scores'].items())
    say(f'{number} {run.name}: {scores}' + (' (found)' if found else ''))
    return []


def say(text: str) -> None:
    """Print a line of progress with the time of day."""
    print(f'{time.strftime("%H:%M:%S")} {text}', flush=True)


def main() -> None:
    args = parse_args()
    rows, archs = select_rows(args.rows), select_archs(args.archs)
    data = find_data(args.data)
    num_test = len(read_split(data.root, data.test_split))
    settings = dict(
        data=data.name,
        default_configs=args.data is None,
        train_images=data.num_train,
        test_images=num_test,
        input_size=args.input_size,
        float_epochs=args.float_epochs,
        qat_epochs=args.qat_epochs,
    )
    folder = args.out.resolve() / data.name
    setup = Setup(
        folder=folder,
        data_options={} if args.data is None else data_options(data),
        float_epochs=args.float_epochs,
        qat_epochs=args.qat_epochs,
        keep=args.keep,
    )
    runs = select_runs(setup, archs, rows, args.seeds)
    if args.list:
        for run in runs:
            print(f'{run.name:55} {state_of(run)}'.rstrip())
        return
    check_settings(folder, settings)
    os.environ['INPUT_SIZE'] = str(args.input_size)
    os.environ['OMP_NUM_THREADS'] = str(args.threads)
    set_process_defaults()
    failures = [] if args.report_only else execute(setup, runs)
    report(setup, settings, len(data.classes), args.report or folder)
    if failures:
        raise SystemExit('error: not finished:\n' + '\n'.join(failures))


def report(
    setup: Setup, settings: dict[str, Any], num_classes: int, folder: Path
) -> None:
    """Write the table, its JSON and its plots, of whatever is finished."""
    # imported here: matplotlib and MMDetection take longer than --list should
    from accuracy_intervals import intervals_of
    from accuracy_plots import draw_all

    results = collect(setup)
    intervals = intervals_of(setup, results, num_classes)
    summary = write_report(settings, results, folder, intervals)
    draw_all(setup, summary, folder)
    say(f'{len(results)} runs are in {relative(folder / "results_table.md")}')


def collect(setup: Setup) -> list[dict[str, Any]]:
    """Return the results of all finished runs of all rows, whatever was asked for."""
    results = []
    for arch in TITLES:
        for row in ROWS:
            folder = setup.folder / arch / 'rows' / row.name
            seeds = sorted(
                int(path.name.partition('_')[2])
                for path in folder.glob('seed_*')
                if path.is_dir()
            )
            for seed in seeds:
                try:
                    result = Run(setup, arch, row, seed).read()
                except RunError as error:
                    say(f'left out of the table: {error}')
                    continue
                if result is not None:
                    results.append(result)
    return results


if __name__ == '__main__':
    main()

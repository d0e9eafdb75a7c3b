"""What quantization costs networks that others trained, in one command.

Calibrates two detectors trained on COCO on a few photographs and tests them on
others, in every way of pretrained_rows.py, each in a process of its own. What was
measured is kept, and made again only where the row, the package or the measuring
has changed.

    MMQUANT_PRETRAINED=/path python benchmarks/pretrained.py
    python benchmarks/pretrained.py --networks yolox_nano --rows int8_jacinto --quick
    python benchmarks/pretrained.py --rows 'int8_*' --json kept.json --table table.md
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy_configs import ROOT, relative, write_config, write_whole
from accuracy_runs import RunError, call, locked
from pretrained_networks import (
    NETWORKS,
    PHOTOGRAPHS,
    VARIABLE,
    Network,
    find_folder,
    photographs,
)
from pretrained_report import lost, table
from pretrained_rows import ROWS, ROWS_BY_NAME, PretrainedRow
from pretrained_scores import CONFIDENT
from pretrained_views import VIEWS_OF_EACH

sys.path.insert(0, str(ROOT / 'demo'))
sys.path.insert(0, str(ROOT / 'tools'))

from process_settings import set_process_defaults
from zoo.report import digest_of, package_sources

HERE = Path(__file__).resolve().parent
PEERS = ROOT / 'benchmarks' / 'results' / 'peers.json'
MEASURING = (
    'accuracy_intervals',
    'pretrained_run',
    'pretrained_scores',
    'pretrained_views',
)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS
    )
    parser.add_argument(
        '--rows',
        nargs='+',
        default=['*'],
        metavar='PATTERN',
        help='rows of the table; --list names them all',
    )
    parser.add_argument(
        '--quick', action='store_true', help='the test images alone, no agreement'
    )
    parser.add_argument('--retry', action='store_true', help='failed rows once more')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'pretrained')
    parser.add_argument('--json', type=Path, help='where results are, and go')
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    parser.add_argument(
        '--threads', type=int, default=os.cpu_count(), help='of torch; default: all'
    )
    parser.add_argument('--list', action='store_true', help='name the rows, and stop')
    parser.add_argument(
        '--report-only', action='store_true', help='write the table of what is there'
    )
    args = parser.parse_args(arguments)
    for pattern in args.rows:
        if not fnmatch.filter(ROWS_BY_NAME, pattern):
            parser.error(f'no row is called {pattern!r}; --list names them all')
    return args


@dataclass(frozen=True)
class RowRun:
    """A row on a network.

    Args:
        out: Where all runs go.
        network: The network.
        row: The row.
        quick: Whether the test images are enough.
    """

    out: Path
    network: Network
    row: PretrainedRow
    quick: bool = False

    @property
    def folder(self) -> Path:
        """Its work directory; its config and its log are beside it."""
        return self.out / self.network.name / self.row.name

    @property
    def name(self) -> str:
        """What the progress calls it."""
        return f'{self.network.name} {self.row.name}'

    @property
    def engine(self) -> str:
        """A number for the package; float does not depend on it."""
        return '' if self.row.quantize is None else digest_of(package_sources())

    def key(self) -> dict[str, Any]:
        """What its result depends on, beside the weights and the images."""
        quantize = self.row.quantize
        key: dict[str, Any] = dict(
            quantize=None if quantize is None else dict(quantize),
            config=hashlib.sha1(self.network.config.read_bytes()).hexdigest()[:12],
            measuring=digest_of(HERE / f'{name}.py' for name in MEASURING),
            engine=self.engine,
        )
        if self.row.epochs is not None:
            key['epochs'] = self.row.epochs
        # as it is once it was written and read
        return json.loads(json.dumps(key))

    def read(self, retry: bool = False) -> dict[str, Any] | None:
        """Its result, or its failure; None where that is to be made."""
        path = self.folder / 'result.json'
        if not path.is_file():
            return None
        found = json.loads(path.read_text())
        if 'error' in found:
            lacks = retry
        else:
            lacks = not self.quick and 'views' not in found
        return None if lacks or found['key'] != self.key() else found

    def write_config(self) -> Path:
        """Write its config and return where."""
        options: dict[str, Any] = dict(work_dir=relative(self.folder))
        if self.row.quantize is not None:
            mode = 'ptq' if self.row.epochs is None else 'qat'
            options['quantize'] = dict(mode=mode, report=False, **self.row.quantize)
        if self.row.epochs is not None:
            options['train_cfg'] = dict(max_epochs=self.row.epochs)
        # It is tested once, when it is calibrated.
        options.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
        predictions = relative(self.folder / 'predictions.pkl')
        lines = [
            f"detections = dict(type='DumpDetResults', out_file_path={predictions!r})",
            'test_evaluator = [_base_.test_evaluator, detections]',
        ]
        path = self.folder.with_suffix('.py')
        write_config(path, self.network.config, options, lines, VARIABLE)
        return path

    def execute(self, lock: int) -> dict[str, Any]:
        """Measure it in a process; return the result, or the failure.

        Args:
            lock: The file descriptor that the process keeps open.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        log = self.folder.with_suffix('.log')
        log.unlink(missing_ok=True)
        result = dict(key=self.key(), engine=self.engine, measured=int(time.time()))
        start = self.out / self.network.name / 'float'
        paths = (self.write_config(), self.folder, start)
        command = ['benchmarks/pretrained_run.py', *map(relative, paths)]
        try:
            call(command, log, lock, *(['--quick'] if self.quick else []))
            result.update(json.loads((self.folder / 'measured.json').read_text()))
        except RunError as error:
            result['error'] = str(error)
        for checkpoint in self.folder.glob('*.pth'):
            if self.row.quantize is not None:
                checkpoint.unlink()
        write_whole(self.folder / 'result.json', json.dumps(result, indent=1) + '\n')
        return result


def select_runs(args: argparse.Namespace) -> list[RowRun]:
    """Return what is asked for: float first, which all are compared with.

    Then what is quick to make, the rows of bounds before the switches; what is
    fine-tuned takes minutes.
    """
    wanted = [
        row
        for row in ROWS
        if row.quantize is None
        or any(fnmatch.fnmatchcase(row.name, pattern) for pattern in args.rows)
    ]
    return [
        RowRun(
            args.out.resolve(),
            NETWORKS[name],
            row,
            args.quick and row.quantize is not None,
        )
        for slow in (False, True)
        for is_switch in (False, True)
        for name in args.networks
        for row in wanted
        if (row.is_finetuned, row.switch is not None) == (slow, is_switch)
    ]


def execute(
    runs: list[RowRun], retry: bool, publish: Callable[[], None] = lambda: None
) -> list[str]:
    """Make the runs that are not finished; return what failed.

    Args:
        runs: What is asked for, float before what is compared with it.
        retry: Whether what failed is made again.
        publish: Called after each run that was made.
    """
    failures = []
    scores: dict[str, Any] = {}
    for number, run in enumerate(runs, 1):
        try:
            with locked(run.out / run.network.name / f'{run.row.name}.lock') as lock:
                found = run.read(retry)
                result = found or run.execute(lock)
        except RunError as error:
            result, found = dict(error=str(error)), None
        if run.row.quantize is None:
            scores[run.network.name] = result
        say(f'[{number}/{len(runs)}] {run.name}: {told(run, result, scores)}', found)
        if found is None:
            publish()
        if 'error' in result:
            failures.append(f'{run.name}: {result["error"]}')
    return failures


def told(run: RowRun, result: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """A result in a line."""
    if 'error' in result:
        return f'error: {result["error"]}'
    start = scores[run.network.name]
    text = ', '.join(f'{key} {value:.1f}' for key, value in result['scores'].items())
    if result is start or 'error' in start:
        return text
    noise, low_high = result['noise'], result['intervals']['mAP']
    bound = run.row.bound.get(run.network.name)
    text += f'; lost {lost(result, start, "mAP"):.1f} of mAP ' + (
        f'[{low_high[0]:.1f}, {low_high[1]:.1f}]'
    )
    text += '' if bound is None else f', bound {bound:g}'
    text += f'; dB {noise["least"]:.1f} least, {noise["median"]:.1f} median'
    if 'agreement' in result:
        text += f'; agreement {result["agreement"]["mAP50"]:.1f}'
    return f'{text}; {result["seconds"]:.0f} s'


def say(text: str, found: Any = None) -> None:
    """Print a line of progress with the time of day."""
    again = ' (found)' if found else ''
    print(f'{time.strftime("%H:%M:%S")} {text}{again}', flush=True)


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """Return all that is known: what is in --json, and what runs have left since."""
    known: dict[str, Any] = {}
    if args.json and args.json.is_file():
        known = json.loads(args.json.read_text())['rows']
    rows: dict[str, dict[str, Any]] = {}
    for name in NETWORKS:
        kept = known.get(name, {})
        for row in ROWS:
            path = args.out / name / row.name / 'result.json'
            found = [kept[row.name]] if row.name in kept else []
            if path.is_file():
                found.append(json.loads(path.read_text()))
            if found:
                # What was left here may be older than what is kept.
                newest = max(reversed(found), key=lambda item: item.get('measured', 0))
                rows.setdefault(name, {})[row.name] = newest
    return dict(facts=facts(args), rows=rows)


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """What all rows have in common."""
    folder = Path(os.environ[VARIABLE]) / 'coco_free'
    train, test = (
        len(json.loads((folder / f'instances_{split}2017.json').read_text())['images'])
        for split in ('train', 'val')
    )
    found = photographs()
    packages = {name.partition('/')[0] for name in found}
    return dict(
        train=train,
        test=test,
        views=VIEWS_OF_EACH,
        looked=len(found),
        packages=', '.join(name for name in PHOTOGRAPHS if name in packages),
        confident=CONFIDENT,
        threads=args.threads,
        photographs=list(found),
    )


def publish(args: argparse.Namespace) -> None:
    """Write --json and --table of what is there so far."""
    content = collect(args)
    peers = json.loads(PEERS.read_text())['models'] if PEERS.is_file() else {}
    for path, text in (
        (args.json, json.dumps(content, indent=1) + '\n'),
        (args.table, table(content, peers)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)


def main() -> None:
    args = parse_args()
    if args.list:
        for row in ROWS:
            print(f'{row.name:35} {row.title}')
        return
    chosen = (NETWORKS[name].checkpoint for name in args.networks)
    find_folder(*chosen, 'coco_free/instances_val2017.json')
    os.environ['OMP_NUM_THREADS'] = str(args.threads)
    set_process_defaults()
    runs = [] if args.report_only else select_runs(args)
    failures = execute(runs, args.retry, lambda: publish(args))
    publish(args)
    if failures:
        raise SystemExit('error: not finished:\n' + '\n'.join(failures))


if __name__ == '__main__':
    main()

"""Run MMDetection's zoo quantized: every model, with random weights.

python tools/sweep.py                        all folders, backbones, necks, heads
python tools/sweep.py --all                  every config
python tools/sweep.py detr 'swin/*t-p4*'     folders, or patterns of paths
python tools/sweep.py --retry failed         those again that had failed
python tools/sweep.py --device cuda --amp carafe dcn dcnv2     on a GPU, fp16 losses
python tools/sweep.py --export --json docs/zoo.json            the export column alone
python tools/sweep.py --commands --json docs/zoo.json          the commands' alone
python tools/sweep.py --rules --json docs/zoo.json             the rules' alone

Each model is examined in a process of its own: does it run in float; recorded,
planned, calibrated, does it predict in integers, train, and come back from a
checkpoint as it was; how far are its outputs from the float ones. One JSON for each
config goes to --work-dir; a run that was interrupted goes on from there, as long as
the package has not changed. The table goes to --table.

--export exports each model instead and compares the file with it, in ONNX Runtime;
--commands types `tools/export.py` and `tools/test.py` for checkpoint and file, and
compares their predictions; --rules exports it for `tidl`, `tensorrt` and `openvino`
and counts which of their rules each file breaks. The rows in --json (without it, those
in --work-dir) keep all else that they say. Such a column begins with what takes least
time; stopped, it goes on where it was, and --report writes what is there.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

from zoo.report import engine_version, write_table
from zoo.violations import in_short as violations_in_short

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
# Of the tables, that are run on their own: here, and in sweep_libraries.py.
COLUMNS = ('export', 'commands', 'rules', 'runner')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('patterns', nargs='*', help='folders or patterns of configs')
    parser.add_argument('--all', action='store_true', help='every config there is')
    parser.add_argument(
        '--first', nargs='+', default=[], help='folders or patterns to begin with'
    )
    parser.add_argument('--list', action='store_true', help='only say which')
    parser.add_argument(
        '--export', action='store_true', help='only export, and compare the files'
    )
    parser.add_argument(
        '--commands', action='store_true', help='only type the commands of an export'
    )
    parser.add_argument(
        '--rules', action='store_true', help='only count the rules that files break'
    )
    parser.add_argument('--device', default='cpu', help='where the models run')
    parser.add_argument('--amp', action='store_true', help='losses in half precision')
    add_options(parser, Path('work_dirs/zoo'))
    return parser.parse_args()


def add_options(parser: argparse.ArgumentParser, work_dir: Path) -> None:
    """Adds what all sweeps are told: how to run, and where results go.

    Args:
        parser (argparse.ArgumentParser): Of the sweep.
        work_dir (Path): Where results go if it is not told.
    """
    parser.add_argument(
        '--report', action='store_true', help='examine nothing, write what is there'
    )
    parser.add_argument('--jobs', type=int, default=1, help='processes at a time')
    parser.add_argument(
        '--timeout', type=float, default=900, help='seconds for each model'
    )
    parser.add_argument('--memory', type=float, default=8, help='GiB for each model')
    parser.add_argument('--work-dir', type=Path, default=work_dir)
    parser.add_argument(
        '--retry',
        choices=['failed', 'everything'],
        help='examine again what failed, or everything',
    )
    parser.add_argument(
        '--keep',
        action='store_true',
        help='results of earlier versions stand; each says which it is of',
    )
    parser.add_argument('--table', type=Path, help='write a table in Markdown')
    parser.add_argument('--json', type=Path, help='write all results to one file')


def begin_work(path: str, args: argparse.Namespace) -> None:
    """Begin a process: its log goes beside its result, its memory has a limit."""
    log = Path(path).with_suffix('.log').open('w')
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    if args.device == 'cpu':
        # CUDA reserves far more addresses than memory.
        limit = int(args.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    import torch

    torch.set_num_threads(1)


def run_one(name: str, path: str, engine: str, args: argparse.Namespace) -> None:
    """Examine a model; the body of a process."""
    begin_work(path, args)
    report: dict[str, Any]
    if args.export:
        from zoo.export import examine_export

        report = examine_export(name)
    elif args.commands:
        from zoo.commands import examine_commands

        report = examine_commands(name)
    elif args.rules:
        from zoo.rules import examine_rules

        report = examine_rules(name)
    else:
        from zoo.check import examine

        report = examine(name, args.device, args.amp)
    write_report(Path(path), report, engine)


def write_report(path: Path, report: dict[str, Any], engine: str) -> None:
    """Write what a process found, all of it or nothing."""
    report['engine'] = engine
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(report, indent=1) + '\n')
    temporary.replace(path)


def is_done(path: Path, engine: str, retry: str, keep: bool = False) -> bool:
    """Whether a result is there that still holds.

    Args:
        path (Path): Of the result.
        engine (str): What this version of the package is called.
        retry (str, optional): ``'failed'`` or ``'everything'``.
        keep (bool): Whether that of an earlier version does.
    """
    if retry == 'everything' or not path.exists():
        return False
    report = json.loads(path.read_text())
    columns = [report.get(column, {}) for column in COLUMNS]
    failed = report.get('status') == 'failed' or any(map(_reasons, columns))
    holds = keep or report['engine'] == engine
    return holds and not (retry == 'failed' and failed)


def _reasons(found: dict[str, Any]) -> list[str]:
    """Why a column, or a target in it, has no result."""
    parts = [item for item in found.values() if isinstance(item, dict)]
    return [item['reason'] for item in (found, *parts) if 'reason' in item]


def supervise(
    context: Any,
    name: str,
    path: Path,
    engine: str,
    args: argparse.Namespace,
    work: Callable[[str, str, str, argparse.Namespace], None] = run_one,
) -> dict[str, Any]:
    """Examine a model in a process of its own, and read what it found."""
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    process = context.Process(target=work, args=(name, str(path), engine, args))
    process.start()
    process.join(args.timeout)
    reason = None
    if process.is_alive():
        process.kill()
        process.join()
        reason = f'took more than {args.timeout:g} s'
    elif not path.exists():
        reason = f'its process ended with code {process.exitcode}'
    if reason is not None:
        failure = dict(config=name, status='failed', failed='process', error=reason)
        column = column_of(args)
        if column:
            failure = {'config': name, column: dict(reason=reason)}
        write_report(path, failure, engine)
    report = json.loads(path.read_text())
    report['wall'] = round(time.perf_counter() - start, 1)
    write_report(path, report, engine)
    return report


def summary_of(report: dict[str, Any]) -> str:
    """One line for the terminal."""
    if 'status' not in report:
        found = next(report[column] for column in COLUMNS if column in report)
        result = '; '.join(_reasons(found))
        if 'images' in found:
            result = f'{found["equal"]} of {found["images"]} images equal'
        elif 'equal' in found:
            result = f'{found["equal"]:.4%} equal'
        elif 'rules' in report:
            result = ' '.join([violations_in_short(found), result])
        return f'{report["config"]}  {report.get("wall", 0)} s  {result}'
    sqnr = report.get('sqnr', {})
    least = ', '.join(f'{bits} bits {item["least"]} dB' for bits, item in sqnr.items())
    problem = f'{report["failed"]}: {report["error"]}' if 'failed' in report else ''
    seconds = report.get('wall', 0)
    return f'{report["status"]:9} {report["config"]}  {seconds} s  {least} {problem}'


def main() -> None:
    args = parse_args()
    # The workers start as copies of a process that has imported MMDetection. Up to
    # Python 3.11 it looks for what to import in PYTHONPATH alone.
    paths = [str(TOOLS), str(ROOT), os.environ.get('PYTHONPATH', '')]
    os.environ['PYTHONPATH'] = os.pathsep.join(path for path in paths if path)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    # A process that was forked cannot use a GPU that its parent has looked at.
    kind = 'forkserver' if args.device == 'cpu' else 'spawn'
    context = multiprocessing.get_context(kind)
    if kind == 'forkserver':
        context.set_forkserver_preload(['zoo.preload'])
    from zoo.configs import select

    chosen = select(args.patterns, args.all)
    first = {name for name, _ in select(args.first)} if args.first else set()
    chosen.sort(key=lambda item: item[0] not in first)
    if args.list:
        for name, reason in chosen:
            print(f'{name}  ({reason})')
        return
    args.work_dir.mkdir(parents=True, exist_ok=True)
    rows, column = {}, column_of(args)
    if column:
        rows = read_rows(args)
        chosen = [
            item for item in chosen if rows.get(item[0], {}).get('status') == 'ok'
        ]
        chosen.sort(key=lambda item: (item[0] not in first, _time(rows[item[0]])))
    names = [name for name, _ in chosen]
    results = examine_all(context, names, args, engine_version())
    write_results(merge(results, rows or read_rows(args), column), args)


def examine_all(
    context: Any,
    names: list[str],
    args: argparse.Namespace,
    engine: str,
    work: Callable[[str, str, str, argparse.Namespace], None] = run_one,
) -> list[dict[str, Any]]:
    """Examine what has no result yet that holds; all results, in order."""
    column = column_of(args)
    paths = {name: result_path(args, name, column) for name in names}
    waiting = [
        name
        for name in paths
        if not is_done(paths[name], engine, args.retry, args.keep)
    ]
    print(f'{len(names)} models, {len(waiting)} to examine', flush=True)
    if args.report:
        paths = {name: path for name, path in paths.items() if name not in waiting}
        waiting = []
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = [
            pool.submit(supervise, context, name, paths[name], engine, args, work)
            for name in waiting
        ]
        for future in futures:
            print(summary_of(future.result()), flush=True)
    return [json.loads(path.read_text()) for path in paths.values()]


def _time(row: dict[str, Any]) -> float:
    """What a model took, in seconds: what takes longest comes last."""
    return row.get('export', {}).get('seconds', row.get('wall', 0.0))


def column_of(args: argparse.Namespace) -> str:
    """The one column that a run is for; none where it examines."""
    return next((name for name in COLUMNS if getattr(args, name, False)), '')


def result_path(args: argparse.Namespace, name: str, column: str = '') -> Path:
    """Where the results of a config go."""
    stem = name.replace('/', '__').removesuffix('.py')
    return args.work_dir / (stem + (f'.{column}.json' if column else '.json'))


def read_rows(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The table as it is, by config: in --json, or else in the work directory."""
    if args.json and args.json.exists():
        reports = json.loads(args.json.read_text())
    else:
        # Of configs, which are in folders: see `result_path`.
        paths = sorted(args.work_dir.glob('*__*.json'))
        ends = tuple(f'.{column}.json' for column in COLUMNS)
        paths = [path for path in paths if not path.name.endswith(ends)]
        reports = [json.loads(path.read_text()) for path in paths]
    return {report['config']: report for report in reports}


def merge(
    results: list[dict[str, Any]], rows: dict[str, dict[str, Any]], column: str
) -> list[dict[str, Any]]:
    """New results and what is known: one column does not change the others.

    Args:
        results (List[dict]): Of this run.
        rows (Dict[str, dict]): The table as it was, by config.
        column (str): What this run was for alone; empty if it examined.
    """
    if not column:
        merged = []
        for item in results:
            row = rows.get(item['config'], {})
            known = {name: row[name] for name in COLUMNS if name in row}
            merged.append({**known, **item})
        return merged
    rows = dict(rows)
    for item in results:
        found = {**item[column], 'engine': item['engine']}
        rows[item['config']] = {**rows[item['config']], column: found}
    return list(rows.values())


def write_results(reports: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write what --json and --table ask for."""
    if args.json:
        # Tracebacks stay in --work-dir: they name paths of this machine.
        reports = [
            {key: value for key, value in item.items() if 'traceback' not in key}
            for item in reports
        ]
        args.json.write_text(json.dumps(reports, indent=1) + '\n')
    if args.table:
        write_table(reports, args.table, _command(args))


def _command(args: argparse.Namespace) -> str:
    """What to type for the same table, wherever this was typed."""
    chosen = ['--all'] if args.all else [] if column_of(args) else args.patterns
    device = [] if args.device == 'cpu' else ['--device', args.device]
    half = ['--amp'] if args.amp else []
    memory = ['--memory', f'{args.memory:g}']
    return ' '.join(
        [
            'python tools/sweep.py',
            *chosen,
            *device,
            *half,
            *memory,
            '--table docs/zoo.md --json docs/zoo.json',
        ]
    )


if __name__ == '__main__':
    main()

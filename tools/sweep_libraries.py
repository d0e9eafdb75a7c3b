"""Run models of OpenMMLab's other libraries quantized, with random weights.

python tools/sweep_libraries.py                    every config of the matrix
python tools/sweep_libraries.py mmpose 'mmocr/textrecog/*'     libraries, or patterns
python tools/sweep_libraries.py --runner           both ways through the runner alone
python tools/sweep_libraries.py --retry failed     those again that had failed

As tools/sweep.py does with MMDetection's zoo, each model is examined in a process of
its own, and exported. --runner takes one config of each library through train.py,
export.py and test.py instead. Results go to --work-dir, and to --json and --table.
It needs the environment of `make test-libraries`.
"""

import argparse
import multiprocessing
import os
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from libraries.configs import all_names
from libraries.imports import LIBRARIES, installed
from libraries.report import write_table
from sweep import (
    ROOT,
    TOOLS,
    add_options,
    begin_work,
    column_of,
    examine_all,
    merge,
    read_rows,
    write_report,
    write_results,
)
from zoo.report import TABLES, digest_of, package_sources


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('patterns', nargs='*', help='libraries or patterns of configs')
    parser.add_argument(
        '--runner', action='store_true', help='only type the commands of one config'
    )
    add_options(parser, Path('work_dirs/libraries'))
    # RTMO trains on images of 640 pixels.
    parser.set_defaults(device='cpu', memory=16)
    return parser.parse_args()


def select(patterns: list[str], names: list[str]) -> list[str]:
    """The names of libraries that are there, and that match a pattern if there is one.

    Args:
        patterns (List[str]): Libraries, or ``fnmatch`` patterns of names.
        names (List[str]): Of configs.
    """
    there = installed()
    return [
        name
        for name in names
        if name.partition('/')[0] in there
        and (
            not patterns
            or any(
                fnmatch(name, pattern) or name.startswith(pattern.rstrip('/') + '/')
                for pattern in patterns
            )
        )
    ]


def run_one(name: str, path: str, engine: str, args: argparse.Namespace) -> None:
    """Examine a model, or take it through the runner; the body of a process."""
    begin_work(path, args)
    report: dict[str, Any]
    if args.runner:
        from libraries.commands import examine_runner

        report = examine_runner(name)
    else:
        from libraries.batches import source_of
        from libraries.imports import import_library
        from zoo.check import examine
        from zoo.export import examine_export

        import_library(name.partition('/')[0])
        report = examine(name, source=source_of(name))
        if report['status'] == 'ok':
            report['export'] = examine_export(name, source_of(name))['export']
    write_report(Path(path), report, engine)


def engine_version() -> str:
    """A number for all sources that results depend on."""
    found = [*(TOOLS / 'libraries').glob('*.py'), *(TOOLS / 'zoo').glob('*.py')]
    own = [path for path in found if path.name not in TABLES]
    return digest_of([*package_sources(), *own])


def versions() -> str:
    """The libraries that are there, with their versions."""
    return ', '.join(f'{LIBRARIES[x]} {version(LIBRARIES[x])}' for x in installed())


def main() -> None:
    args = parse_args()
    paths = [str(TOOLS), str(ROOT), os.environ.get('PYTHONPATH', '')]
    os.environ['PYTHONPATH'] = os.pathsep.join(path for path in paths if path)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    names = all_names()
    if args.runner:
        from libraries.cases import CASES
        from libraries.commands import config_of

        names = [config_of(library) for library in CASES]
    args.work_dir.mkdir(parents=True, exist_ok=True)
    rows, column = read_rows(args), column_of(args)
    # A library's registrations are for the whole process.
    context = multiprocessing.get_context('spawn')
    chosen = select(args.patterns, names)
    if not chosen:
        sys.exit('error: no config of an installed library matches; see --help')
    results = examine_all(context, chosen, args, engine_version(), run_one)
    if column:
        known = [item for item in results if item['config'] in rows]
        reports = merge(known, rows, column)
    else:
        merged = {item['config']: item for item in merge(results, rows, column)}
        reports = list({**rows, **merged}.values())
    table, args.table = args.table, None
    write_results(reports, args)
    if table:
        write_table(reports, table, versions())


if __name__ == '__main__':
    main()

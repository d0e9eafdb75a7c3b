"""Config files that a command writes, for itself and for a user to run by hand."""

from __future__ import annotations

import argparse
import json
import os
import pprint
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def relative(path: Path) -> str:
    """Return a path as the commands, which run in the repository, name it."""
    return os.path.relpath(path, ROOT)


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merge dicts, nested ones too; what is in ``more`` wins."""
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            value = merged(known, value)
        result[key] = value
    return result


def fill(value: Any, places: Mapping[str, str]) -> Any:
    """Put paths in the place of ``{float}`` and ``{config}`` in all strings."""
    if isinstance(value, str):
        for name, path in places.items():
            value = value.replace(f'{{{name}}}', path)
        return value
    if isinstance(value, Mapping):
        return {key: fill(item, places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(fill(item, places) for item in value)
    return value


def write_config(
    path: Path,
    base: Path,
    options: Mapping[str, Any],
    lines: Sequence[str] = (),
    variable: str = 'INPUT_SIZE',
) -> None:
    """Write a config that a user can run by hand.

    Args:
        path: The file.
        base: The config it starts from.
        options: Its keys.
        lines: Further lines of Python.
        variable: What the config reads from the environment.
    """
    text = [
        f'# Run it with {variable}={os.environ[variable]} in the environment.',
        f'_base_ = {os.path.relpath(base, path.parent)!r}',
    ]
    for key, value in options.items():
        text.append(f'{key} = {pprint.pformat(value, sort_dicts=False, width=80)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, '\n'.join([*text, *lines]) + '\n')


def write_rows(path: Path, rows: Any) -> None:
    """Write what was measured as JSON, whole, into a folder that may be new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(rows, indent=1) + '\n')


def measure_rows(
    args: argparse.Namespace,
    measure: Callable[[Path, argparse.Namespace], Any],
    table: Callable[[Any], str],
) -> None:
    """Measure configs one after the other, and print a table of all that are known.

    Args:
        args: With ``configs``, ``json`` (where rows are, and go) and ``table``.
        measure: A config and ``args`` to its row.
        table: Rows by the configs' names to Markdown.
    """
    # imported here: it takes longer than --list of other commands should
    from mmengine.logging import MMLogger

    warnings.filterwarnings('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    rows = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for path in args.configs:
        rows[path.stem] = measure(path, args)
        write_rows(args.json, rows)
    print(table(rows), end='')
    if args.table is not None:
        write_whole(args.table, table(rows))


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen in part."""
    part = path.with_name(path.name + '.part')
    part.write_text(text)
    os.replace(part, path)

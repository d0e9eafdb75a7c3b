"""Report: findings and tables as text, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ...targets.rules import table
from ...targets.rules.table import Row, Rules
from .check import Finding


def violations(findings: Sequence[Finding]) -> list[Finding]:
    """Those that an engine refuses, or computes otherwise than was tested."""
    return [item for item in findings if item.severity == table.VIOLATION]


def to_text(findings: Sequence[Finding], rules: Rules) -> str:
    """Findings for a reader, a line each, and the documents below.

    Args:
        findings (Sequence[Finding]): Of a file.
        rules (Rules): They are of.

    Returns:
        str: Several lines; one if there is nothing.
    """
    words = _words(rules)
    sources = list(dict.fromkeys(item.source for item in findings))
    lines = [
        f'{words[item.severity]}: {item.operator} {item.node}, {item.rule}: '
        f'{item.found}; right: {item.right} [{sources.index(item.source) + 1}]'
        for item in findings
    ]
    lines += [f'[{i + 1}] {source}' for i, source in enumerate(sources)]
    return '\n'.join([*lines, summary(findings)])


def _words(rules: Rules) -> dict[str, str]:
    return {
        table.VIOLATION: 'violation',
        table.HOST: rules.host,
        table.SLOWER: 'slower than it could be',
    }


def grouped(findings: Sequence[Finding], rules: Rules) -> str:
    """Findings of a model whose nodes are named by its modules, equal ones together.

    Args:
        findings (Sequence[Finding]): Of a file.
        rules (Rules): They are of.
    """
    words = _words(rules)
    groups: dict[str, list[str]] = {}
    for item in findings:
        # A grid is named by its tensor, which differs from node to node.
        found = item.found.partition(': ')[2] or item.found
        key = (
            f'{words[item.severity]}: {item.operator}, {item.rule}: {found}; right: '
            f'{item.right} [{item.source}]'
        )
        groups.setdefault(key, []).append(item.node)
    lines = []
    for key, nodes in groups.items():
        lines += [f'{key}, {len(nodes)} x', *(f'    {node}' for node in nodes)]
    return '\n'.join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """How many there are of each kind."""
    count = len(violations(findings))
    notices = len(findings) - count
    ending = '' if count == 1 else 's'
    return f'{count} violation{ending}, {notices} notice{"" if notices == 1 else "s"}'


def by_kind(findings: Sequence[Finding]) -> str:
    """How many findings there are, and of which operators."""
    counts = Counter((item.severity, item.operator) for item in findings)
    kinds = [
        f'{severity}: {operator} x {count}'
        for (severity, operator), count in counts.items()
    ]
    return '; '.join([summary(findings), *kinds])


def to_json(findings: Sequence[Finding]) -> str:
    """Findings for a program: a list of objects, and how many there are."""
    counts = Counter(item.severity for item in findings)
    data = {
        'counts': {name: counts[name] for name in table.SEVERITIES},
        'findings': [asdict(item) for item in findings],
    }
    return json.dumps(data, indent=1)


def to_markdown(name: str, rules: Rules) -> str:
    """An engine's table as a section of a page.

    Args:
        name (str): Of the target.
        rules (Rules): Its table.
    """
    sources: dict[str, int] = {}
    lines = [f'### `{name}`', '', rules.reads + '.', '']
    lines += ['| operators | rule | else | source |', '| --- | --- | --- | --- |']
    words = {
        table.VIOLATION: 'violation',
        table.HOST: rules.host,
        table.SLOWER: 'slower',
    }
    for row in rules.rows:
        number = sources.setdefault(str(row.source), len(sources) + 1)
        severity = words[getattr(row, 'severity', table.VIOLATION)]
        if isinstance(row, table.Divided) or getattr(row, 'drops_pairs', False):
            severity = ''  # it may stand there or not
        lines.append(f'| {_names(row)} | {_rule(row)} | {severity} | {number} |')
    lines.append('')
    lines += [f'{number}. {source}' for source, number in sources.items()]
    return '\n'.join(lines) + '\n'


def _names(row: Row) -> str:
    words = {
        table.ANY: 'all others',
        table.INPUT: 'input',
        table.OUTPUT: 'output',
        table.FILE: 'file',
    }
    return ' '.join(words.get(name, name) for name in row.operators)


def _rule(row: Any) -> str:
    return '; '.join(_parts(row)).replace('|', '\\|')


def _parts(row: Any) -> Iterator[str]:
    if isinstance(row, table.Activations):
        yield 'activations ' + ' or '.join(row.types)
        yield 'a scale for each channel' if row.per_channel else 'one scale'
        yield 'zero point 0' if row.symmetric else 'any zero point'
    elif isinstance(row, table.Weights):
        yield 'weights ' + ' or '.join(row.types)
        axis = 'output channel' if row.axis is None else f'element of axis {row.axis}'
        yield f'a scale for each {axis}' if row.per_channel else 'one scale'
        yield 'zero point 0' if row.symmetric else 'any zero point'
    elif isinstance(row, table.Biases):
        yield 'biases ' + ' or '.join(row.types)
    elif isinstance(row, table.Pairs):
        yield 'a Q/DQ pair behind'
    elif isinstance(row, table.Fusion):
        followers = ', '.join(row.followers)
        if row.drops_pairs:
            yield f'one with {followers} behind; a Q/DQ pair between is left out'
        else:
            yield f'no Q/DQ pair before {followers}'
    elif isinstance(row, table.Pattern):
        yield 'no Q/DQ pair inside'
    elif isinstance(row, table.Divided):
        yield 'a division of each channel in front is part of it'
    elif isinstance(row, table.Limit):
        yield row.right
    elif isinstance(row, table.Versions):
        yield 'opset {} to {}'.format(*row.opset)
        if row.ir is not None:
            yield f'IR version up to {row.ir}'
    elif isinstance(row, table.Known):
        where = ', of those that read quantized values' if row.quantized else ''
        yield f'no other operators than these{where}'

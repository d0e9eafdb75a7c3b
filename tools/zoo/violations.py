"""The rules' columns of the sweep's table: what each file breaks, by target."""

from collections import Counter
from typing import Any

TARGETS = ('tidl', 'tensorrt', 'openvino')


def cells(report: dict[str, Any]) -> list[str]:
    """Number of violations, by target; – was not run, *no* has no file.

    Args:
        report (Dict[str, Any]): Of a model.
    """
    found = report.get('rules')
    if found is None:
        return ['–'] * len(TARGETS)
    return [str(found.get(name, {}).get('violation', 'no')) for name in TARGETS]


def in_short(found: dict[str, Any]) -> str:
    """The three numbers for the terminal."""
    return ', '.join(
        f'{name} {found[name]["violation"]} ({found[name]["host"]} in float)'
        for name in TARGETS
        if 'violation' in found.get(name, {})
    )


def summary(reports: list[dict[str, Any]]) -> str:
    """How many files break no rule, by target, and of which versions that is."""
    found = [report['rules'] for report in reports if 'rules' in report]
    if not found:
        return ''
    words = []
    for name in TARGETS:
        files = [item[name] for item in found if 'violation' in item.get(name, {})]
        right = sum(item['violation'] == 0 for item in files)
        whole = sum(item['violation'] == item['host'] == 0 for item in files)
        words.append(
            f'`{name}`: {right} of {len(files)} files break none, {whole} of them have '
            'no node either that the engine runs in float'
        )
    versions = ', '.join(sorted({str(item.get('engine')) for item in found}))
    return (
        f'\n\nRules were counted for {len(found)} of the {len(reports)} (engine '
        f'{versions}). ' + '; '.join(words) + '.'
    )


def broken(reports: list[dict[str, Any]]) -> dict[str, str]:
    """What is violated by the file of a config, or why there is none."""
    found = {}
    for report in reports:
        rules = report.get('rules', {})
        words = [rules['reason']] if 'reason' in rules else []
        for name in TARGETS:
            item = rules.get(name, {})
            if 'reason' in item:
                words.append(f'`{name}`: no file: {item["reason"]}')
            kinds = item.get('kinds', {}).get('violation', {})
            words += [f'`{name}`: {kind} ({count} x)' for kind, count in kinds.items()]
        found[report['config']] = '; '.join(words)
    return found


def in_float(reports: list[dict[str, Any]]) -> dict[str, str]:
    """What engines run in float: of each rule, how many nodes in how many files."""
    nodes: Counter = Counter()
    files: Counter = Counter()
    for report in reports:
        for name in TARGETS:
            item = report.get('rules', {}).get(name, {})
            for kind, count in item.get('kinds', {}).get('host', {}).items():
                nodes[name, kind] += count
                files[name, kind] += 1
    return {
        f'{name}`, `{kind}': f'{nodes[name, kind]} nodes in {count} files'
        for (name, kind), count in sorted(
            files.items(), key=lambda item: (TARGETS.index(item[0][0]), -item[1])
        )
    }

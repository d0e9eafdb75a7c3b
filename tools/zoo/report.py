"""The sweep's table."""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import violations
from .outputs import NO_NOISE

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / 'mmquant_jacinto'
# Only write what others found.
TABLES = ('report.py', 'violations.py')
BOUNDS = {'16': 55.0, '8': 15.0}  # dB, by bits
EIGHT_BITS = 48.2  # dB
DEVIATIONS = {
    'missing': 'outputs did not come',
    'strayed': 'calls on other detections than in float, which cannot be compared,',
}
LAYERS = ('Conv', 'Linear', 'Attention')  # in names of their classes

# Why a model falls short by itself, by pattern of its config.
EXPLANATIONS = {
    'mask2former*': 'The masks of its attention are its own predictions, cut at 1/2. '
    'One that rounding moves over the cut wins or loses a key: a choice, which no '
    'number of bits rules out. Up to the first mask, its outputs have 80 dB',
    '*solo*': 'A class score counts if it is the largest of its neighbours, and is '
    'zero otherwise: of two that nearly tie, rounding may pick the other. Before that '
    'choice the scores have 80 dB',
    'gn+ws/*x50*': 'A standardized kernel has no mean, so it loses what a ReLU gives '
    'its input, a third of the power, and the group normalization behind it amplifies '
    'the rest, noise included: 1.7 dB for each of 50 layers',
}

INTRODUCTION = """# The zoo of MMDetection, quantized

Written by `{command}`; do not edit. Engine {engine}.

Each model is built from its config with random weights, on two images of {sizes} pixels
(the second one narrower, so that there is padding), on one CPU thread. *16 bits* and
*8 bits* are the signal to quantization noise of the head output that has the least, in
dB, in integer arithmetic, format `onnxruntime`, ranges from the same batch; the bounds
are {bounds[16]:.0f} and {bounds[8]:.0f} dB. A *head output* is what a region returns
that no other region gets. *QAT* is one training step: its loss is finite and the same
parameters get gradients as in float. *Gain* is what the float model does to noise in
its image, in dB, seen at its worst output: with random weights some amplify it, and
with it all that quantization adds on the way. *Reload*: a checkpoint gives the same
predictions, bit for bit. *In float* counts the weights and layers that are not
quantized; they are named below. *Export*: the share of elements of the file's outputs
that ONNX Runtime computes equal to the integer model, on two images that gave no
ranges (`python tools/sweep.py --export --table docs/zoo.md --json docs/zoo.json`).
*Commands*: of how many images `tools/test.py` predicts the same, bit for bit, by the
checkpoint and by the file of `tools/export.py` (`python tools/sweep.py --commands
--table docs/zoo.md --json docs/zoo.json`); with a star, the file lacks a part of the
model, and has taken the place of what it holds in the checkpoint; – was not run.
*tidl*, *tensorrt*, *openvino*: how many rules of [these engines](targets.md) the file
breaks that is exported for them; what they would refuse or compute otherwise counts,
not what they run in float or slower (`python tools/sweep.py --rules --table docs/zoo.md
--json docs/zoo.json`).

{counts}

What does not run in float here for want of a GPU is examined on one, in half precision,
by `python tools/sweep.py --device cuda --amp carafe dcn dcnv2 guided_anchoring`, which
has not been run so far.
"""


@functools.lru_cache
def engine_version() -> str:
    """A number for all sources that results depend on: those of two do not mix."""
    own = [path for path in HERE.glob('*.py') if path.name not in TABLES]
    return digest_of([*package_sources(), *own])


def package_sources() -> list[Path]:
    """What the package is made of."""
    return [*PACKAGE.rglob('*.py'), *PACKAGE.rglob('*.c')]


def digest_of(sources: Iterable[Path]) -> str:
    """A number for the content of files."""
    digest = hashlib.sha1()
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def shortfalls(report: dict[str, Any]) -> list[str]:
    """What a model that ran quantized falls short in, in words."""
    found = []
    for bits, bound in BOUNDS.items():
        result = report.get('sqnr', {}).get(bits)
        if result is None:
            continue
        low = {name: dB for name, dB in result['heads'].items() if dB < bound}
        if low:
            worst = min(low, key=low.get)
            found.append(
                f'{len(low)} of {len(result["heads"])} head outputs below {bound:.0f} '
                f'dB at {bits} bits, the least `{worst}` with {low[worst]} dB'
                + _cause(report, bits, worst)
            )
            if bits == '16' and 'below' in report:
                found.append(_noise_in_words(report['below']))
        for key, words in DEVIATIONS.items():
            if result[key]:
                names = ', '.join(f'`{name}`' for name in result[key][:3])
                found.append(f'{len(result[key])} {words} at {bits} bits: {names}')
    qat = report.get('qat')
    if qat is not None:
        if not qat['finite']:
            found.append('the loss of the QAT step is not finite')
        for key in ('lost_gradients', 'new_gradients'):
            if qat[key]:
                names = ', '.join(f'`{name}`' for name in qat[key][:4])
                found.append(f'{len(qat[key])} {key.replace("_", " ")}: {names}')
    if report.get('reload') is False:
        found.append('predictions after reloading differ')
    layers = _layers_in_float(report)
    if layers:
        found.append(f'{len(layers)} layers in float')
    return found


def _cause(report: dict[str, Any], bits: str, name: str) -> str:
    """What the numbers say about an output that is below a bound."""
    causes = []
    gain = report.get('noise_gain')
    if gain is not None and gain > 10:
        causes.append(f'the float model amplifies noise by {gain:.0f} dB')
    most = report['sqnr']['16']['heads'].get(name)
    if bits == '8' and most is not None and most >= BOUNDS['16']:
        less = most - report['sqnr']['8']['heads'][name]
        if abs(less - EIGHT_BITS) < 6:
            causes.append(
                f'{less:.0f} dB less than at 16 bits, as 8 bits cost: the rounding '
                'of many tensors in a row, none of them out of its range'
            )
    return f' ({"; ".join(causes)})' if causes else ''


def _noise_in_words(found: dict[str, Any]) -> str:
    """What `shortfall.examine_shortfall` found."""
    before = "all of that noise is its own layers'"
    if found['in_float'] < NO_NOISE:
        before = (
            'in float, from what the quantized layers before it give, it has '
            f'{found["in_float"]} dB'
        )
    return (
        f'{before}; a thousandth of its elements has {100 * found["share"]:.0f} % of '
        f'the noise, the others have {found["without"]} dB; with ranges that end at '
        f'what was seen it has {found["no_room"]} dB'
    )


def _layers_in_float(report: dict[str, Any]) -> list[str]:
    """Weights in float but those that no layer multiplies by.

    A parameter that is read outside of the regions, such as the embedding of
    queries that one of them gets, is none of a layer's either.
    """
    return [
        name
        for name, item in report.get('in_float', {}).items()
        if not item['reason'].startswith('no layer')
        and not (
            item['reason'].startswith('no call')
            and not (item['trained'] and any(word in item['kind'] for word in LAYERS))
        )
    ]


def write_table(reports: Iterable[dict[str, Any]], path: Path, command: str) -> None:
    """Writes the table of all models in Markdown.

    Args:
        reports (Iterable[dict]): Of ``check.examine``.
        path (Path): Where to.
        command (str): That made it.
    """
    reports = sorted(reports, key=lambda report: report['config'])
    sizes = sorted({report['size'] for report in reports if 'size' in report})
    ran = [report for report in reports if report['status'] == 'ok']
    short = {report['config']: _explained(report) for report in ran}
    counts = Counter(report['status'] for report in reports)
    lines = [
        INTRODUCTION.format(
            command=command,
            engine=', '.join(sorted({report['engine'] for report in reports})),
            sizes=' or '.join(map(str, sizes)),
            bounds={int(bits): bound for bits, bound in BOUNDS.items()},
            counts=f'{len(reports)} configs: {counts["ok"]} run quantized, '
            f'{sum(not items for items in short.values())} of them without any '
            f'shortfall; {counts["failed"]} do not run quantized; '
            f'{counts["no float"]} do not run in float here.'
            + _commands_in_short(ran)
            + violations.summary(ran),
        ),
        '| config | regions | sites | weights | in float | 16 bits | 8 bits | gain '
        '| QAT | reload | export | commands | tidl | tensorrt | openvino |',
        '| --- | ' + '--: | ' * 7 + '--- | --- | --: | --: | --: | --: | --: |',
        *(_row(report) for report in ran),
        '',
        *_section(
            'Shortfalls', {name: '; '.join(items) for name, items in short.items()}
        ),
        *_section(
            'Not quantized',
            {
                report['config']: f'{report["failed"]}: {report["error"]}'
                for report in reports
                if report['status'] == 'failed'
            },
        ),
        *_section(
            'Not in float here',
            {
                report['config']: f'{report.get("failed", "")}: {report["error"]}'
                for report in reports
                if report['status'] == 'no float'
            },
        ),
        *_exports(ran),
        *_section('Rules that files break', violations.broken(ran)),
        *_section('Nodes that engines run in float', violations.in_float(ran)),
        *_section(
            'No loss here, so no QAT step',
            {report['config']: report.get('no loss', '') for report in ran},
        ),
        *_in_float(ran),
    ]
    path.write_text('\n'.join(lines).rstrip() + '\n')


def _explained(report: dict[str, Any]) -> list[str]:
    found = shortfalls(report)
    for pattern, text in EXPLANATIONS.items():
        if found and fnmatch(report['config'], pattern):
            found.append(text)
    return found


def _row(report: dict[str, Any]) -> str:
    sizes = [str(report[key]) for key in ('regions', 'sites', 'weights')]
    row = table_row(report, sizes, 'commands')
    return ' '.join([row, *(f'{cell} |' for cell in violations.cells(report))])


def table_row(report: dict[str, Any], sizes: list[str], commands: str) -> str:
    """A model's row: what it has, how far it is from float, and its file.

    Args:
        report (Dict[str, Any]): Of the model.
        sizes (List[str]): Cells behind its name.
        commands (str): Key of what was predicted by commands.
    """
    qat = report.get('qat')
    trained = '–'
    if qat is not None:
        same = not qat['lost_gradients'] and not qat['new_gradients']
        trained = 'yes' if qat['finite'] and same else 'no'
    cells = [
        f'`{report["config"].removesuffix(".py")}`',
        *sizes,
        str(len(report['in_float'])),
        *(_decibels(report['sqnr'][bits]['least']) for bits in BOUNDS),
        _decibels(report.get('noise_gain')),
        trained,
        'yes' if report['reload'] else 'no',
        _equal(report.get('export')),
        _predicted(report.get(commands)),
    ]
    return '| ' + ' | '.join(cells) + ' |'


def _equal(export: Any) -> str:
    """A share; it is never rounded up to all."""
    if export is None:
        return '–'
    if 'reason' in export:
        return 'no'
    return f'{math.floor(export["equal"] * 1e5) / 1e3:g} %'


def _predicted(commands: Any) -> str:
    if commands is None:
        return '–'
    if 'reason' in commands:
        return 'no'
    part = '*' if commands.get('missing') else ''
    return f'{commands["equal"]} of {commands["images"]}{part}'


def _parting(export: dict[str, Any]) -> str:
    """Where a file and its model part, and how far."""
    if export['first'] is None:
        return 'all quantized tensors are equal: only what follows the last differs'
    return (
        f'the largest difference {export["largest"]:.3g} steps; they part first in '
        f'`{export["first"]}`'
    )


def _exports(reports: list[dict[str, Any]]) -> list[str]:
    """What the export column says in short, at length."""
    exports = {
        report['config']: report['export'] for report in reports if 'export' in report
    }
    differing = {
        name: f'{_equal(item)} of {item["elements"]} elements, {_parting(item)}'
        for name, item in exports.items()
        if item.get('equal', 1) < 1
    }
    parts: dict[str, dict[str, None]] = {}
    for name, item in exports.items():
        for part in item.get('skipped', []):
            parts.setdefault(part, {})[name.partition('/')[0]] = None
    in_float = {
        name: f'{item["layers"] - item["integer_layers"]} of {item["layers"]}'
        for name, item in exports.items()
        if item.get('integer_layers') != item.get('layers')
    }
    return [
        *_section(
            'No file', {name: item.get('reason', '') for name, item in exports.items()}
        ),
        *_section('Files that differ', differing),
        *_section('Not by the commands', _not_by_commands(reports)),
        *_section('Layers that ONNX Runtime runs in float', in_float),
        *_section(
            'Not in the file',
            {part: ', '.join(names) for part, names in sorted(parts.items())},
        ),
    ]


def _commands_in_short(reports: list[dict[str, Any]]) -> str:
    """What was found by the commands, and of how many models; with the versions."""
    found = [report['commands'] for report in reports if 'commands' in report]
    if not found:
        return ''
    equal = sum('images' in x and x['equal'] == x['images'] for x in found)
    versions = ', '.join(sorted({str(x.get('engine')) for x in found}))
    return (
        f'\n\nBy the commands {len(found)} of the {len(reports)} were run (engine '
        f'{versions}): {equal} predict the same on all images; why others do not is '
        'said below.'
    )


def _not_by_commands(reports: list[dict[str, Any]]) -> dict[str, str]:
    found = {}
    for report in reports:
        item = report.get('commands', {})
        if item.get('equal', 0) < item.get('images', 0):
            found[report['config']] = 'predictions differ'
        elif 'reason' in item:
            found[report['config']] = item['reason']
    return found


def _decibels(value: Any) -> str:
    return '–' if value is None else f'{value:.1f}'


def _section(title: str, items: dict[str, str]) -> list[str]:
    rows = [f'- `{name}`: {text}' for name, text in items.items() if text]
    return [f'## {title}', '', *rows, ''] if rows else []


def _in_float(reports: list[dict[str, Any]]) -> list[str]:
    """All weights in float: by name, the same in several models once."""
    models: dict[tuple[str, str, str], list[str]] = {}
    for report in reports:
        for name, item in report['in_float'].items():
            key = name, item['kind'], item['reason']
            models.setdefault(key, []).append(report['config'])
    rows = [
        f'| `{name}` | {kind} | {reason} | {configs[0].partition("/")[0]}'
        + (f' and {len(configs) - 1} more' if configs[1:] else '')
        + ' |'
        for (name, kind, reason), configs in sorted(models.items(), key=lambda x: x[1])
    ]
    head = ['| weight or call | of | reason | model |', '| --- | --- | --- | --- |']
    return ['## Weights in float', '', *head, *rows, ''] if rows else []

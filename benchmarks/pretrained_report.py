"""The table of networks that others trained, out of what their rows measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pretrained_networks import NETWORKS
from pretrained_rows import ROWS, PretrainedRow

COMMAND = (
    'python benchmarks/pretrained.py --json benchmarks/results/pretrained.json '
    '--table docs/pretrained.md'
)
OURS = 'mmquant_jacinto'
HEAD = (
    '| row | lost mAP | lost mAP50 | lost mAP, views | dB: least, median | '
    'agreement mAP50 · mAP | score error | seconds | bound | met, on views |',
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
)
INTRODUCTION = """# Networks that others trained

Written by `{command}`; do not edit.

Calibrated on {train} photographs of COCO, tested on {test} others: the points of mAP
0.50:0.95 and of mAP50 that are lost against float on the same images, in brackets
their paired bootstrap 95 % interval. *Views*: the same on {views} views of each of
these images: as it is and mirrored, each of them lighter, smaller, and smaller and
darker too. Float has a score of its own there, and noise is other noise in each view,
so that what is lost is known better (intervals are of draws of photographs, each with
all its views). *dB*: the signal to noise of the head's raw outputs over the test
images, that of the worst output and the median. *Agreement*: the scores against the
float detector's own detections above {confident} as ground truth, on the {looked}
photographs that come with {packages}. *Score error*: by how many points of a hundred
the scores of confident detections differ from those of float, on all these images.
*Seconds*: of the calibration, from float weights to the checkpoint, on {threads}
shared cores. *Met*: the bound, on the photographs and on their views. Each row has
the defaults of its target and bits, but for the keys that it names.
"""


def lost(row: Mapping[str, Any], start: Mapping[str, Any], metric: str) -> float:
    """Points that a row lost against float."""
    return start['scores'][metric] - row['scores'][metric]


def told_loss(row: Mapping[str, Any], start: Mapping[str, Any], metric: str) -> str:
    """Points that a row lost against float, with their interval."""
    low, high = row['intervals'][metric]
    return f'{lost(row, start, metric):.1f} [{low:.1f}, {high:.1f}]'


def is_met(row: PretrainedRow, network: str, value: float) -> bool | None:
    """Whether a loss of mAP is within the bound; None where there is none."""
    bound = row.bound.get(network)
    return None if bound is None else value <= bound


def wide(widths: Mapping[str, Mapping[str, int]]) -> str:
    """Say how many weights and activations have more bits than asked for, if any has.

    A head may have most of the weights; of activations few have other widths.
    """
    parts = []
    for kind, counts in widths.items():
        usual = (
            min(counts, key=int) if kind == 'weight' else max(counts, key=counts.get)
        )
        total = sum(counts.values())
        for bits, count in counts.items():
            if int(bits) <= int(usual):
                continue
            told = f'{count} of {total} activations'
            if kind == 'weight':
                told = f'{100 * count / total:.0f} % of the weights'
            parts.append(f'{told} at {bits} bits')
    return f' ({", ".join(parts)})' if parts else ''


def table_row(
    row: PretrainedRow, found: Mapping[str, Any], start: Mapping[str, Any], network: str
) -> str:
    """Return a row in Markdown.

    Args:
        row: The row.
        found: What it measured, or why not.
        start: What float measured.
        network: The name of the network.
    """
    bound = row.bound.get(network)
    told = '' if bound is None else f'{bound:g}'
    if 'error' in found:
        cells = [row.title, f'failed: {found["error"]}', *[''] * 6, told]
        return f'| {" | ".join(cells)} | {"" if bound is None else "no"} |'
    cells = [row.title + wide(found.get('widths', {}))]
    cells += [told_loss(found, start, metric) for metric in ('mAP', 'mAP50')]
    has_views = 'views' in found and 'views' in start
    seen = (found['views'], start['views']) if has_views else None
    cells.append(told_loss(*seen, 'mAP') if seen else '')
    noise, agreed = found['noise'], found.get('agreement')
    cells.append(f'{noise["least"]:.1f}, {noise["median"]:.1f}')
    cells.append(f'{agreed["mAP50"]:.1f} · {agreed["mAP"]:.1f}' if agreed else '')
    error = (agreed or {}).get('score_error')
    cells.append('' if error is None else f'{error:.1f}')
    cells.append(f'{found["seconds"]:.0f}')
    compared = ((found, start), seen) if seen else ((found, start),)
    met = (is_met(row, network, lost(*pair, 'mAP')) for pair in compared)
    words = {True: 'yes', False: '**no**'}
    cells += [told, '' if bound is None else ' · '.join(words[item] for item in met)]
    return f'| {" | ".join(cells)} |'


def peer_lines(rows: Mapping[str, Mapping[str, Any]], base: Mapping[str, float]):
    """Yield the table of other libraries, of what peers.py keeps of a network.

    Our own row there is left out: the rows of bounds say more, and of one version.
    """
    yield '| library | variant | bits | lost mAP | lost mAP50 | dB: scores, boxes, … |'
    yield '| --- | --- | --- | --- | --- | --- |'
    for key, row in rows.items():
        library, variant, bits = key.split(' / ')
        if library == OURS:
            continue
        head = f'| {library} | {variant} | {bits} |'
        if 'reason' in row:
            yield f'{head} failed: {row["reason"]} | | |'
            continue
        points = (f'{base[metric] - row[metric]:.1f}' for metric in ('mAP', 'mAP50'))
        ratios = (f'{value:.1f}' for name, value in row.items() if name.endswith('_dB'))
        yield f'{head} {" | ".join(points)} | {", ".join(ratios)} |'


def network_lines(
    network: str, found: Mapping[str, Any], peers: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the tables of a network: the bounds' rows, the libraries, the switches."""
    start = found['float']
    yield f'## {NETWORKS[network].title}'
    yield ''
    scores = start['scores']
    told = f'Float: mAP {scores["mAP"]:.1f}, mAP50 {scores["mAP50"]:.1f}'
    if 'views' in start:
        told += f'; on views mAP {start["views"]["scores"]["mAP"]:.1f}'
    yield f'{told}.'
    quantized = [row for row in ROWS if row.name in found and row.quantize is not None]
    for is_switch in (False, True):
        rows = [row for row in quantized if (row.switch is not None) == is_switch]
        if rows:
            yield from [
                '',
                *(['One switch at a time:', ''] if is_switch else []),
                *HEAD,
            ]
            for row in rows:
                yield table_row(row, found[row.name], start, network)
        if not is_switch and peers.get('rows'):
            yield from ['', 'Other libraries, by `make peers`:', '']
            yield from peer_lines(peers['rows'], peers['float'])
    yield ''


def engines(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[tuple[str, int]]:
    """Versions of the package that rows were made with, and how many rows."""
    counts = Counter(row['engine'] for found in rows.values() for row in found.values())
    counts.pop('', None)
    return counts.most_common()


def table(content: Mapping[str, Any], peers: Mapping[str, Any] | None = None) -> str:
    """Return all of it in Markdown.

    Args:
        content: What pretrained.py keeps as JSON.
        peers: What peers.py keeps as JSON, by network.
    """
    facts = content['facts']
    lines = [INTRODUCTION.format(command=COMMAND, **facts)]
    versions = engines(content['rows'])
    if len(versions) > 1:
        told = ', '.join(f'{count} of {name}' for name, count in versions)
        lines += [f'Rows of several versions of the package: {told}.', '']
    for network in NETWORKS:
        if 'scores' in content['rows'].get(network, {}).get('float', {}):
            others = (peers or {}).get(network, {})
            lines += network_lines(network, content['rows'][network], others)
    return '\n'.join(lines).rstrip() + '\n'

"""Write what folders of configs say of themselves, out of the results that are kept.

    python benchmarks/config_pages.py

Each folder's README.md has its table between two comments, and a metafile.yml, which
``mim search mmquant_jacinto`` reads. With ``--check`` nothing is written, and the exit
status says whether all of it is up to date.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from mmquant_jacinto import QuantizeConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
BEGIN, END = '<!-- Table by benchmarks/config_pages.py -->', '<!-- End of table -->'
HEAD = (
    '| config | bits | target | way | mAP50 | mAP 0.50:0.95 |\n'
    '| --- | --- | --- | --- | --- | --- |'
)
# The rows of docs/results.json that the configs of a folder make.
KINDS = {'': 'float', '_ptq': 'int8_jacinto_ptq', '_qat': 'int8_jacinto_qat'}
WAYS = {None: 'float', 'ptq': 'calibrated', 'qat': 'QAT'}


@dataclass(frozen=True)
class Entry:
    """A row of a folder's table.

    Attributes:
        config (str): The file, from the folder on.
        bits (str): Widths, as a reader writes them.
        target (str): The engine, '' in float.
        way (str): Float, calibrated or trained.
        metrics (Mapping): ``mAP50`` and ``mAP`` in percent; empty where it was not run.
    """

    config: str
    bits: str
    target: str
    way: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        scores = (
            f'{self.metrics[name]:.1f}' if name in self.metrics else '–'
            for name in ('mAP50', 'mAP')
        )
        cells = (f'`{self.config}`', self.bits, self.target, self.way)
        return '| ' + ' | '.join((*cells, *scores)) + ' |'


@dataclass(frozen=True)
class Folder:
    """A folder of configs.

    Attributes:
        name (str): Of the folder.
        collection (str): What MIM calls it.
        dataset (str): What the scores are measured on, and how much of it.
        paper (tuple): URL and title.
    """

    name: str
    collection: str
    dataset: str
    paper: tuple[str, str]


SSD = ('https://arxiv.org/abs/1512.02325', 'SSD: Single Shot MultiBox Detector')
YOLOX = ('https://arxiv.org/abs/2107.08430', 'YOLOX: Exceeding YOLO Series in 2021')
FOLDERS = (
    Folder('bccd', 'SSD-FPN on BCCD', 'BCCD, 87 images at 256 x 256', SSD),
    Folder('demo', 'SSD-FPN of the demo', 'BCCD, 87 images at 192 x 192', SSD),
    Folder('jacinto_ai', 'SSD-FPN on VOC0712', 'VOC2007', SSD),
    Folder('pascal_voc', 'SSD512 on VOC0712', 'VOC2007', SSD),
    Folder('pretrained', 'Trained by others', 'COCO, 20 photographs', YOLOX),
)


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def bccd_scores(stem: str, results: Mapping[str, Any]) -> dict[str, float]:
    """What docs/results.json has of a config of ``configs/bccd``."""
    for row in results['summary']:
        for ending, name in KINDS.items():
            if row['row'] == name and stem == f'ssd_{row["arch"]}_fpn{ending}':
                return {metric: row[metric]['mean'] for metric in ('mAP50', 'mAP')}
    return {}


def demo_scores(stem: str, results: Mapping[str, Any]) -> dict[str, float]:
    """What docs/demo_results.json has of a config of ``configs/demo``."""
    kind = stem.replace('ssd_mobilenet_fpn', '').lstrip('_') or 'float'
    return {'mAP50': 100 * results[kind]}


def trained_here(folder: Folder) -> Iterator[Entry]:
    """The rows of configs that say themselves how they quantize."""
    look_up = {
        'bccd': (bccd_scores, 'docs/results.json'),
        'demo': (demo_scores, 'docs/demo_results.json'),
    }
    for path in sorted((CONFIGS / folder.name).glob('*.py')):
        settings = QuantizeConfig.parse(Config.fromfile(path).get('quantize'))
        metrics = {}
        if folder.name in look_up:
            find, results = look_up[folder.name]
            metrics = find(path.stem, read(results))
        if settings is None:
            yield Entry(path.name, '32', '', 'float', metrics)
        else:
            way = WAYS[settings.mode]
            way += ', distilled' if path.stem.endswith('_distill') else ''
            yield Entry(path.name, str(settings.bits), settings.target, way, metrics)


def trained_by_others(folder: Folder) -> Iterator[Entry]:
    """The rows of float configs that are quantized from the command line."""
    results = read('benchmarks/results/pretrained.json')['rows']
    for path in sorted((CONFIGS / folder.name).glob('*.py')):
        for row in results[path.stem].values():
            quantize = row['key']['quantize']
            if quantize is None:
                yield Entry(path.name, '32', '', 'float', row['scores'])
            elif set(quantize) == {'target', 'bits'} and isinstance(
                quantize['bits'], int
            ):
                yield Entry(
                    path.name,
                    str(quantize['bits']),
                    quantize['target'],
                    WAYS['qat' if 'epochs' in row['key'] else 'ptq'],
                    row['scores'],
                )


def entries(folder: Folder) -> list[Entry]:
    if folder.name == 'pretrained':
        return list(trained_by_others(folder))
    return list(trained_here(folder))


def readme(folder: Folder, rows: list[Entry]) -> str:
    """The folder's README.md with today's table in it."""
    before, _, rest = (CONFIGS / folder.name / 'README.md').read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(
            f'error: configs/{folder.name}/README.md has no place for its table'
        )
    table = '\n'.join([HEAD, *(row.line() for row in rows)])
    return f'{before}{BEGIN}\n{table}\n{END}{after}'


def model(folder: Folder, row: Entry) -> dict[str, Any]:
    """A model of the metafile."""
    name = f'{folder.name}_{Path(row.config).stem}'
    if folder.name == 'pretrained' and row.target:
        name += f'_{row.target}_int{row.bits}'
        name += '_qat' if row.way == WAYS['qat'] else ''
    result: dict[str, Any] = {
        'Name': name,
        'In Collection': folder.collection,
        'Config': f'configs/{folder.name}/{row.config}',
        'Metadata': {
            'Bits': int(row.bits),
            'Target': row.target or 'float',
            'Way': row.way,
        },
    }
    if row.metrics:
        dataset, *of = folder.dataset.split(', ')
        result['Metadata']['Tested On'] = ', '.join(of)
        names = {'mAP50': 'box AP50', 'mAP': 'box AP'}
        metrics = {
            title: round(row.metrics[key], 1)
            for key, title in names.items()
            if key in row.metrics
        }
        result['Results'] = [
            {'Task': 'Object Detection', 'Dataset': dataset, 'Metrics': metrics}
        ]
    return result


def metafile(folder: Folder, rows: list[Entry]) -> str:
    """The folder's metafile.yml."""
    url, title = folder.paper
    content = {
        'Collections': [
            {
                'Name': folder.collection,
                'Metadata': {'Training Data': folder.dataset.split(',')[0]},
                'Paper': {'URL': url, 'Title': title},
                'README': f'configs/{folder.name}/README.md',
            }
        ],
        'Models': [model(folder, row) for row in rows],
    }
    head = '# Written by benchmarks/config_pages.py; do not edit.\n'
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def pages() -> dict[Path, str]:
    """The content of every file that is written."""
    content = {}
    for folder in FOLDERS:
        rows = entries(folder)
        content[CONFIGS / folder.name / 'README.md'] = readme(folder, rows)
        content[CONFIGS / folder.name / 'metafile.yml'] = metafile(folder, rows)
    imports = [f'configs/{folder.name}/metafile.yml' for folder in FOLDERS]
    content[ROOT / 'model-index.yml'] = yaml.safe_dump({'Import': imports})
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing')
    args = parser.parse_args()
    content = pages()
    outdated = [
        p for p, text in content.items() if not p.exists() or p.read_text() != text
    ]
    for path in outdated:
        if not args.check:
            path.write_text(content[path])
        print(f'{"outdated" if args.check else "written"}: {path.relative_to(ROOT)}')
    if args.check and outdated:
        raise SystemExit('run `python benchmarks/config_pages.py`')


if __name__ == '__main__':
    main()

"""Whether files for ONNX Runtime compute the same in its versions, old and new.

Writes the operators' tests (tests/export/operators, inputs with ties) and two detectors
as files, with what the integer model computes, and runs them in each version, in an
environment of its own, by all levels of optimization, with the integer kernels of this
processor and with ``session.x64quantprecision``, which takes those of processors
without VNNI. (ONNX Runtime has no switch for VNNI itself.)

    R=benchmarks/results/engine_versions.json
    python benchmarks/engine_versions.py --json $R --table docs/export.md
    python benchmarks/engine_versions.py --versions 1.32.0 --detectors
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import venv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_agreement
import numpy as np
import onnx
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmquant_jacinto.export.configs.proof import instruction_set
from mmquant_jacinto.export.exporter import Exported, export_onnx

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / 'tests'
TABLES = ('arithmetic', 'elementwise', 'exact', 'layer', 'shape', 'spatial')
# The newest three, and what TI's tools ship.
VERSIONS = ('1.32.0', '1.31.1', '1.30.0', '1.15.0')
DETECTORS = ('bccd_mobilenet', 'ssdlite')
# The table in a page lies between these lines.
START, END = '<!-- engine versions -->', '<!-- end of engine versions -->'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--versions', nargs='+', default=list(VERSIONS))
    parser.add_argument('--detectors', nargs='*', default=list(DETECTORS))
    parser.add_argument(
        '--folder', type=Path, default=ROOT / 'work_dirs' / 'engine_versions'
    )
    parser.add_argument('--json', type=Path, help='where the result goes')
    parser.add_argument(
        '--table', type=Path, help=f'a page whose table, behind {START}, is renewed'
    )
    return parser.parse_args()


def operators() -> Iterator[tuple[str, Any]]:
    """Names and operators of the tests of exported files."""
    for name in ('helpers', 'export/operators'):
        sys.path.insert(0, str(TESTS / name))
    for table in TABLES:
        module = __import__(f'test_{table}')
        for name, operator in module.OPERATORS.items():
            makes = table in ('exact', 'layer')
            yield f'{table}: {name}', operator() if makes else operator


def write(folder: Path, name: str, exported: Exported, given: Tensor, out: Any) -> None:
    """A file, its inputs and what is expected."""
    place = folder / name.replace('/', '_').replace(': ', '-').replace(' ', '_')
    onnx.save(exported.model, f'{place}.onnx')
    (image,) = [item.name for item in exported.model.graph.input]
    arrays = {f'in:{image}': given.numpy()}
    outputs = {key: value.numpy() for key, value in out.items()}
    arrays.update({f'out:{key}': value for key, value in outputs.items()})
    np.savez(f'{place}.npz', **arrays)


def write_operators(folder: Path) -> None:
    """The operators, on inputs with ties; ``lerp`` is known to be off by one."""
    found = dict(operators())
    from exactness import KINDS, between_layers
    from toy_models import calibrated

    for name, operator in found.items():
        torch.manual_seed(0)
        net: nn.Module = between_layers(operator, 1.0)
        inputs = KINDS['ties']()
        calibrated(net.eval(), inputs.seen, target='onnxruntime', observer='minmax')
        exported = export_onnx(net, inputs.seen)
        with torch.no_grad():
            out = net(inputs.run)
        (key,) = exported.scales
        write(folder, name, exported, inputs.run, {key: out})


def write_detector(folder: Path, name: str) -> None:
    """A detector with random weights, on photographs that it was not calibrated on."""
    from mmquant_jacinto.export.example import Example, RegionOutputs, named_tensors

    args = argparse.Namespace(
        preset='onnxruntime', bits=8, images=1, folder=export_agreement.PHOTOGRAPHS
    )
    wrapper, batches = export_agreement.quantize(name, args)
    exported = export_onnx(wrapper, batches[0])
    root = wrapper.quantization.root
    given = Example.of(root, batches[0])
    regions = RegionOutputs(root, exported.layout)
    with regions.collecting() as outputs:
        given.run()
    expected = named_tensors(exported.layout, outputs)
    (image,) = given.inputs.values()
    write(folder, f'detector: {name}', exported, image, expected)


def interpreter(folder: Path, version: str) -> Path:
    """The interpreter of an environment with a version; made if it is not there."""
    place = folder / f'onnxruntime-{version}'
    python = place / 'bin' / 'python'
    if not (place / 'ready').is_file():
        venv.create(place, with_pip=True, clear=True)
        # Wheels of before NumPy 2 do not load with it.
        old = tuple(map(int, version.split('.')[:2])) < (1, 19)
        packages = [f'onnxruntime=={version}', 'numpy<2' if old else 'numpy']
        subprocess.run(
            [python, '-m', 'pip', 'install', '--quiet', *packages], check=True
        )
        (place / 'ready').touch()
    return python


def run(python: Path, files: Path) -> dict[str, Any]:
    """How many files are equal in an environment, and which are not."""
    script = Path(__file__).with_name('engine_check.py')
    done = subprocess.run(
        [python, script, files], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for item in found['runs']:
        checked = item.pop('files')
        unequal = {k: file for k, file in checked.items() if file.get('differ') != 0}
        item['files'] = {}
        for kind in ('operators', 'detectors'):
            is_detector = kind == 'detectors'
            of_kind = [k for k in checked if k.startswith('detector-') == is_detector]
            equal = sum(name not in unequal for name in of_kind)
            item['files'][kind] = [equal, len(of_kind)]
        item['unequal'] = unequal
    return found


def _unequal(files: dict[str, dict[str, Any]]) -> str:
    """Names of files that are not equal, and how many do not load."""
    failed = sum('error' in file for file in files.values())
    shown = [f'`{name}`' for name, file in files.items() if 'error' not in file]
    parts = [*shown[:4], *([f'{len(shown) - 4} more'] if len(shown) > 4 else [])]
    return ', '.join(parts + ([f'{failed} do not load'] if failed else []))


def table(content: dict[str, Any]) -> str:
    """A row for each version and kind of kernels, and levels alike, in Markdown."""
    lines = [
        '| ONNX Runtime | kernels | optimizations | operators equal | detectors equal '
        '| not equal |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for found in content['versions']:
        levels: dict[tuple[str, ...], list[str]] = {}
        for item in found['runs']:
            kernels = 'x64quantprecision' if item['precise'] else 'as they are'
            counts = [f'{a} of {b}' for a, b in item['files'].values()]
            cells = (kernels, *counts, _unequal(item['unequal']))
            levels.setdefault(cells, []).append(item['level'])
        for (kernels, *rest), names in levels.items():
            cells = (found['version'], kernels, ', '.join(names), *rest)
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    init_default_scope('mmdet')
    files = args.folder / 'files'
    files.mkdir(parents=True, exist_ok=True)
    for path in files.iterdir():
        path.unlink()
    write_operators(files)
    for name in args.detectors:
        write_detector(files, name)
    content = {'instructions': instruction_set(), 'versions': []}
    for version in args.versions:
        content['versions'].append(run(interpreter(args.folder, version), files))
        print(f'{version}: done', flush=True)
    print(table(content))
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + '\n')
    if args.table:
        page = args.table.read_text()
        head, _, rest = page.partition(START)
        _, _, tail = rest.partition(END)
        args.table.write_text(f'{head}{START}\n{table(content)}{END}{tail}')


if __name__ == '__main__':
    main()

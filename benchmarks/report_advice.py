"""Whether the line that a report page tells to add helps.

    python benchmarks/report_advice.py configs/pretrained/yolox_nano.py \
        --json benchmarks/results/report_advice.json

Calibrates a config's network for a target at 8 bits, reports on it, calibrates again
with the first line of the page, as it stands in the HTML, and scores all of them and
float by the config's own test. The JSON has what the first screen says.
"""

from __future__ import annotations

import argparse
import copy
import html
import json
import re
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmquant_jacinto.report.build import Images, build_report, write_report
from mmquant_jacinto.report.page.verdict import verdict

MEASURED, SCORED = 8, 50  # images, as quant_report.py has them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--target', default='jacinto')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/report_advice'))
    parser.add_argument('--json', type=Path, required=True)
    return parser.parse_args()


def run(cfg: Config, folder: Path, quantize: dict[str, Any] | None) -> tuple:
    """Calibrate, if asked to, and test.

    Returns:
        The runner of the test, and what was measured.
    """
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(folder)
    measured: dict[str, Any] = {}
    if quantize is not None:
        cfg.quantize = dict(mode='ptq', report=False, **quantize)
        start = time.monotonic()
        Runner.from_cfg(copy.deepcopy(cfg)).train()
        measured['seconds'] = round(time.monotonic() - start, 1)
        cfg.load_from = str(folder / 'epoch_1.pth')
    runner = Runner.from_cfg(cfg)
    scores = runner.test()
    measured['scores'] = {
        name: round(100 * float(value), 1)
        for name, value in scores.items()
        if name.endswith(('mAP', 'mAP_50'))
    }
    return runner, measured


def advise(runner: Any, folder: Path) -> dict[str, Any]:
    """Report on a tested network, and return what its page says."""
    loader = runner.test_loop.dataloader
    images, scored = (
        Images(loader.dataset, loader.collate_fn, count) for count in (MEASURED, SCORED)
    )
    title = folder.parent.name
    report, pictures = build_report(runner.model, title, 'report', images, scored)
    page = write_report(report, str(folder), pictures)
    said = verdict(report)
    return dict(
        bytes=page.stat().st_size,
        **{key: said[key] for key in ('headline', 'distance', 'why', 'next', 'search')},
        trials=[
            dict(
                line=t.line, before=round(t.snr_before, 1), after=round(t.snr_after, 1)
            )
            for t in report.trials
        ],
        findings=[
            dict(module=f.module, cause=f.cause, remedy=f.remedy)
            for f in report.findings
        ],
    )


def read_line(page: Path) -> dict[str, Any]:
    """What a user copies from the page: nothing where it says that all is well."""
    found = re.search(r'<pre id="next-line">(.*?)</pre>', page.read_text(), re.DOTALL)
    if found is None:
        return {}
    names: dict[str, Any] = {}
    exec(html.unescape(found[1]), names)
    return names['quantize']


def main() -> None:
    args = parse_args()
    results = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for path in args.configs:
        cfg, folder = Config.fromfile(path), args.out / path.stem
        cfg.setdefault('runner_type', 'QuantRunner')
        row: dict[str, Any] = {}
        row['float'] = run(cfg, folder / 'float', None)[1]
        runner, row['8 bits'] = run(cfg, folder / 'start', dict(target=args.target))
        row['page'] = advise(runner, folder / 'page')
        line = read_line(folder / 'page' / 'report.html')
        if line:
            given = dict(target=args.target, **line)
            row['with the line'] = run(cfg, folder / 'advised', given)[1]
        results[path.stem] = row
        args.json.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()

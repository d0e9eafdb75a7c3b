"""Whether the line that a report page tells to try helps.

    python benchmarks/report_advice.py configs/pretrained/yolox_nano.py \
        --json benchmarks/results/report_advice.json

Calibrates a config's network for a target at 8 bits, reports on it, calibrates again
with the very line of the page, and scores all of them and float by the config's own
test.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmquant_jacinto.report.build import Images, build_report, write_report
from mmquant_jacinto.report.causes import next_line

MEASURED = 8  # images


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
    images = Images(loader.dataset, loader.collate_fn, MEASURED)
    title = folder.parent.name
    report, pictures = build_report(runner.model, title, 'report', images)
    page = write_report(report, str(folder), pictures)
    trial = next_line(report.trials)
    return dict(
        bytes=page.stat().st_size,
        line=None if trial is None else trial.line,
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


def main() -> None:
    args = parse_args()
    results: dict[str, Any] = {}
    for path in args.configs:
        cfg, folder = Config.fromfile(path), args.out / path.stem
        cfg.setdefault('runner_type', 'QuantRunner')
        row: dict[str, Any] = {}
        row['float'] = run(cfg, folder / 'float', None)[1]
        runner, row['8 bits'] = run(cfg, folder / 'start', dict(target=args.target))
        row['page'] = advise(runner, folder / 'page')
        if row['page']['line'] is not None:
            # A line of a config, as a user would copy it.
            line = eval(f'dict({row["page"]["line"]})')
            given = dict(target=args.target, **line)
            row['with the line'] = run(cfg, folder / 'advised', given)[1]
        results[path.stem] = row
        args.json.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()

"""What surgery costs and gives: YOLOX-Nano on BCCD, with and without it.

Trains the network that learned on COCO a few epochs more on BCCD in float, as it is and
with its SiLU and its SPP replaced (``SurgeryHook``), and calibrates both for TIDL. The
scores are mAP50 of the validation images. What was measured is kept.

    BCCD_ROOT=/path/bccd MMQUANT_PRETRAINED=/path python benchmarks/surgery_cost.py \\
        --json benchmarks/results/surgery_cost.json --table table.md
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import ROOT, write_rows, write_whole
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from pretrained_networks import NETWORKS, find_folder

import mmquant_jacinto  # noqa: F401 - lets runners quantize

NETWORK = NETWORKS['yolox_nano']
DATA = ROOT / 'configs' / '_base_' / 'ssd_fpn_bccd.py'
WAYS = {'as it is': False, 'with surgery': True}
TARGETS = ('float', 'tidl', 'jacinto')
METRIC = 'pascal_voc/mAP'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--epochs', type=int, default=12, help='of float training')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'surgery_cost')
    parser.add_argument('--json', type=Path, required=True, help='results are, and go')
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    return parser.parse_args(arguments)


def config(surgery: bool, target: str, seed: int, epochs: int, folder: Path) -> Config:
    """The network on BCCD's images, in float or calibrated.

    Args:
        surgery (bool): Whether modules are replaced.
        target (str): One of :data:`TARGETS`.
        seed (int): Of the run, and of the float training that it starts from.
        epochs (int): Of the float training.
        folder (Path): Where runs of this way and seed leave their checkpoints.
    """
    cfg, data = Config.fromfile(NETWORK.config), Config.fromfile(DATA)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key] = dict(data[key], num_workers=0, persistent_workers=False)
    cfg.val_evaluator = cfg.test_evaluator = data.val_evaluator[0]
    cfg.model.bbox_head.num_classes = len(data.classes)
    cfg.model.data_preprocessor.batch_augments = None  # one size, that of the test
    cfg.custom_hooks = [dict(type='SurgeryHook')] if surgery else []
    cfg.optim_wrapper = dict(
        data.optim_wrapper,
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    )
    warm_up = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50)
    cosine = dict(type='CosineAnnealingLR', T_max=epochs, end=epochs)
    cfg.param_scheduler = [warm_up, dict(cosine, convert_to_iter_based=True)]
    cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=epochs)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=epochs)
    cfg.randomness = dict(seed=seed)
    cfg.work_dir = str(folder / target)
    if target != 'float':
        cfg.custom_hooks = []
        cfg.load_from = str(folder / 'float' / f'epoch_{epochs}.pth')
        cfg.quantize = dict(mode='ptq', target=target, surgery=surgery, report=False)
    return cfg


def score(cfg: Config) -> float:
    """mAP50 at the end of a training or a calibration, in percent."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    scores = runner.message_hub.log_scalars[f'val/{METRIC}']
    return round(100 * float(scores.current()), 2)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown: means over the seeds, and from which to which."""
    lines = ['| YOLOX-Nano | float | `tidl` | `jacinto` |', '| --- ' * 4 + '|']
    for way in WAYS:
        cells = []
        for target in TARGETS:
            found = [row[way][target] for row in rows.values()]
            ends = f' ({min(found):.1f} to {max(found):.1f})' if len(found) > 1 else ''
            cells.append(f'{statistics.mean(found):.1f}{ends}')
        lines.append(f'| {way} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    find_folder(NETWORK.checkpoint)
    torch.set_num_threads(1)
    kept = json.loads(args.json.read_text()) if args.json.is_file() else {}
    rows = kept.get('mAP50', {}) if kept.get('epochs') == args.epochs else {}
    for seed in args.seeds:
        row = rows.setdefault(str(seed), {})
        for way, surgery in WAYS.items():
            found = row.setdefault(way, {})
            for target in TARGETS:
                if target in found:
                    continue
                folder = args.out / way.replace(' ', '_') / f'seed_{seed}'
                cfg = config(surgery, target, seed, args.epochs, folder)
                found[target] = score(cfg)
                print(f'{way}, seed {seed}, {target}: {found[target]}', flush=True)
                write_rows(args.json, dict(epochs=args.epochs, mAP50=rows))
    print(table(rows), end='')
    if args.table is not None:
        write_whole(args.table, table(rows))


if __name__ == '__main__':
    main()

"""mAP of files for OpenVINO, in OpenVINO, beside that of the test they are to equal.

Calibrates the networks of configs/pretrained for ``openvino`` and scores checkpoint and
file on their test photographs.

    MMQUANT_PRETRAINED=/path python benchmarks/openvino_scores.py \\
        --json benchmarks/results/openvino_scores.json
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

from accuracy_configs import ROOT, relative, write_config
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from pretrained_networks import NETWORKS, VARIABLE, Network, find_folder

import mmquant_jacinto  # noqa: F401 - lets runners quantize
from mmquant_jacinto.export.configs.checkpoint import load_quantized
from mmquant_jacinto.export.configs.end_to_end import score_both
from mmquant_jacinto.export.configs.file_run import FileRun
from mmquant_jacinto.export.configs.test_images import TestImages
from mmquant_jacinto.export.exporter import export_onnx
from mmquant_jacinto.export.verify import verify


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--networks', nargs='+', default=list(NETWORKS), choices=NETWORKS
    )
    parser.add_argument('--images', type=int, default=20, help='to score on')
    parser.add_argument(
        '--folder', type=Path, default=ROOT / 'work_dirs' / 'openvino_scores'
    )
    parser.add_argument('--json', type=Path, help='where the result goes')
    return parser.parse_args()


def calibrate(network: Network, folder: Path) -> Path:
    """Calibrates a network; returns the config it was done by."""
    shutil.rmtree(folder, ignore_errors=True)
    path = folder.with_suffix('.py')
    options = dict(
        work_dir=relative(folder),
        quantize=dict(mode='ptq', target='openvino', report=False),
        val_dataloader=None,
        val_evaluator=None,
        val_cfg=None,
    )
    write_config(path, network.config, options, variable=VARIABLE)
    Runner.from_cfg(Config.fromfile(path)).train()
    return path


def measure(network: Network, args: argparse.Namespace) -> dict[str, Any]:
    """Scores of checkpoint and file, and how many of their elements are equal."""
    folder = args.folder / network.name
    cfg = Config.fromfile(calibrate(network, folder))
    wrapper = load_quantized(cfg, str(folder / 'epoch_1.pth'))
    root = wrapper.quantization.root
    images = TestImages(cfg, root, None, None, args.images, False)
    with images.input.applied(root):
        examples = list(images.batches())
        exported = export_onnx(wrapper, examples[0], 'openvino')
        report = verify(exported, root, examples, 'openvino')
    run = FileRun(cfg, exported.model, 'openvino', in_part=True)
    both = score_both(cfg, wrapper, run, images)
    return {
        'images': len(both.file.predictions),
        'equal elements': report.share,
        'decibels': min(report.signal_to_noise, 150.0),
        'equal predictions': both.same.equal(both.file),
        'test mode': both.same.scores,
        'OpenVINO': both.file.scores,
    }


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    find_folder('coco_free/instances_val2017.json')
    results = {}
    print(
        '| network | equal elements | mAP, test mode | mAP, OpenVINO | equal images |'
    )
    print('| --- | --- | --- | --- | --- |')
    for name in args.networks:
        found = results[name] = measure(NETWORKS[name], args)
        first, second = (
            next(v for k, v in found[way].items() if k.endswith('bbox_mAP'))
            for way in ('test mode', 'OpenVINO')
        )
        print(
            f'| {NETWORKS[name].title} | {found["equal elements"]:.3%} | {first:.3f} '
            f'| {second:.3f} | {found["equal predictions"]} of {found["images"]} |',
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()

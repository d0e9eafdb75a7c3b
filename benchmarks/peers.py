"""Post-training quantization of the same detector by us and by other libraries.

Each library quantizes the same float network (backbone, neck and the head's layers)
on the same calibration images: the first of the order in which our calibration takes
the training images, through the pipeline of validation. Each is scored by the
detector's own postprocessing and metric on the test images. One that fails gives its
reason in place of a score. What ``--json`` holds already is not done again.

The libraries have an environment of their own, ``.venv-peers``, because some of them
bring versions of packages that ours should not depend on. ``make peers
CHECKPOINT=float.pth`` sets it up and does the second command::

    VENV=.venv-peers PEERS=1 bash tools/setup_env.sh
    .venv-peers/bin/python benchmarks/peers.py configs/bccd/ssd_mobilenet_fpn.py \
        float.pth --json benchmarks/results/peers.json
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import importlib.metadata
import json
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from detector_scores import (
    DetectorTest,
    FloatNetwork,
    in_place,
    map_scores,
    signal_to_noise,
)
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from peer_quantizers import PEERS
from pretrained_scores import KINDS
from torch import Tensor, nn

from mmquant_jacinto import QuantizeError, QuantRunner
from mmquant_jacinto.runners.calibration_batches import calibration_dataloader

PACKAGES = ('torch', 'nncf', 'nvidia-modelopt', 'torchao', 'onnxruntime', 'onnx')
OURS = 'mmquant_jacinto'
W4A8 = dict(weight=4, activation=8)
# (variant, bits of weights and activations): keys of `quantize`.
OUR_VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    ('default', 'W8A8'): dict(bits=8),
    ('percentile', 'W8A8'): dict(bits=8, observer='percentile'),
    ('mse', 'W8A8'): dict(bits=8, observer='mse'),
    ('minmax', 'W8A8'): dict(bits=8, observer='minmax'),
    ('default', 'W4A8'): dict(bits=W4A8),
    ('percentile', 'W4A8'): dict(bits=W4A8, observer='percentile'),
    ('finetuned', 'W4A8'): dict(bits=W4A8, finetune=True),
    ('default', 'W4A4'): dict(bits=4),
    ('percentile', 'W4A4'): dict(bits=4, observer='percentile'),
    ('mse', 'W4A4'): dict(bits=4, observer='mse'),
    ('finetuned', 'W4A4'): dict(bits=4, observer='mse', finetune=True),
}
TARGET = 'onnxruntime'  # scales as they come, weights per channel: as the peers have


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', type=Path, help='of a float single-stage detector')
    parser.add_argument('checkpoint', type=Path, help='its float weights')
    parser.add_argument('--images', type=int, default=128, help='to calibrate on')
    parser.add_argument('--test-images', type=int, help='only the first so many')
    parser.add_argument(
        '--only', nargs='+', default=['*'], help='patterns such as "nncf*" or "*W4A8"'
    )
    parser.add_argument('--retry', action='store_true', help='failed rows once more')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/peers'))
    parser.add_argument('--json', type=Path, help='where results are, and go')
    args = parser.parse_args(arguments)
    for path in (args.config, args.checkpoint):
        if not path.is_file():
            parser.error(f'{path} is not a file')
    if args.images < 1:
        parser.error(f'--images {args.images}: calibration needs at least one image')
    if not any(selected(row, args.only) for row in all_rows()):
        names = ', '.join(sorted({row[0] for row in all_rows()}))
        parser.error(f'--only {" ".join(args.only)} selects nothing; there is {names}')
    return args


def all_rows() -> list[tuple[str, str, str]]:
    """Library, variant and bits of each row, widths together."""
    ours = [(OURS, *key) for key in OUR_VARIANTS]
    order = ('W8A8', 'W4A8', 'W4A4')
    return sorted([*ours, *PEERS], key=lambda row: order.index(row[2]))


def selected(row: tuple[str, str, str], patterns: list[str]) -> bool:
    """Whether a pattern matches 'library variant bits'."""
    return any(fnmatch.fnmatch(' '.join(row), pattern) for pattern in patterns)


def read_config(path: Path, images: int, work_dir: Path) -> Config:
    """A float config, made to calibrate on the given number of images."""
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    for name in ('train_dataloader', 'test_dataloader'):
        cfg[name].update(num_workers=0, persistent_workers=False)
    cfg.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
    cfg.log_level = 'ERROR'
    cfg.quantize = dict(mode='ptq', target=TARGET, calibration=dict(num_images=images))
    return cfg


def float_detector(cfg: Config, checkpoint: Path) -> nn.Module:
    """The detector in evaluation mode, with its weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    detector = MODELS.build(cfg.model)
    load_checkpoint(detector, str(checkpoint), map_location='cpu')
    return detector.eval()


def calibration_images(cfg: Config, detector: nn.Module) -> Tensor:
    """What our calibration sees, (N, C, H, W), normalized."""
    runner = QuantRunner.from_cfg(copy.deepcopy(cfg))
    calibration = runner.quantize_config.calibration
    images: list[Tensor] = []
    for batch in calibration_dataloader(runner, calibration):
        images += detector.data_preprocessor(batch, False)['inputs']
        if len(images) >= calibration.num_images:
            break
    return torch.stack(images)


def quantize_ours(cfg: Config, checkpoint: Path, keys: dict[str, Any]) -> nn.Module:
    """The detector, calibrated by our runner."""
    cfg = copy.deepcopy(cfg)
    cfg.quantize.update(dict(dict(finetune=False), **keys))
    cfg.load_from = str(checkpoint)
    return QuantRunner.from_cfg(cfg).train().eval().module


class Comparison:
    """A detector, its images, and what float gives on them.

    Args:
        cfg (Config): Of :func:`read_config`.
        checkpoint (Path): Float weights.
        test_images (int, optional): Only the first so many.
    """

    def __init__(
        self, cfg: Config, checkpoint: Path, test_images: int | None = None
    ) -> None:
        self.cfg, self.checkpoint = cfg, checkpoint
        self.folder = Path(cfg.work_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.detector = float_detector(cfg, checkpoint)
        self.images = calibration_images(cfg, self.detector)
        self.test = DetectorTest(cfg, self.detector, test_images)
        metrics, self.raw = self.test.score(self.detector)
        self.float_scores = map_scores(metrics)

    def facts(self) -> dict[str, Any]:
        """What all rows have in common."""
        return {
            'float': {k: round(v, 3) for k, v in self.float_scores.items()},
            'input': list(self.images.shape[-2:]),
            'calibration images': len(self.images),
            'test images': len(self.test.batches),
        }

    def run(self, library: str, variant: str, bits: str) -> dict[str, Any]:
        """Scores of a row, or the reason why there are none."""
        try:
            scores = self._score(library, variant, bits)
        except Exception as error:  # noqa: B902 - a library raises anything
            return dict(reason=reason(error))
        return {key: round(value, 3) for key, value in scores.items()}

    def _score(self, library: str, variant: str, bits: str) -> dict[str, float]:
        if library == OURS:
            keys = OUR_VARIANTS[variant, bits]
            metrics, raw = self.test.score(
                quantize_ours(self.cfg, self.checkpoint, keys)
            )
        else:
            quantize, options = PEERS[library, variant, bits]
            network = FloatNetwork(copy.deepcopy(self.detector)).eval()
            with torch.no_grad():
                quantized = quantize(network, self.images, self.folder, **options)
            with in_place(self.detector, quantized, self.test.kinds) as detector:
                metrics, raw = self.test.score(detector)
        kinds = KINDS[self.test.kinds]
        ratios = signal_to_noise(self.raw, raw, len(kinds))
        decibels = {f'{kind}_dB': ratio for kind, ratio in zip(kinds, ratios)}
        return dict(map_scores(metrics), **decibels)


def check_alike(result: dict[str, Any], facts: dict[str, Any], where: str) -> None:
    """Refuse to put rows beside those of other images or weights.

    Raises:
        SystemExit: If there are such rows.
    """
    for key, value in facts.items():
        if result['rows'] and result.get(key) != value:
            raise SystemExit(
                f'error: {where} has rows with {key} {result.get(key)}, not {value}; '
                'ask for the same, or choose another file with --json'
            )


def reason(error: BaseException) -> str:
    """An error in a line, without folders of the machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r'(/[\w.+-]+){2,}/', '', ' '.join(lines))
    return f'{type(error).__name__}: {text[:240]}'


def table(name: str, result: dict[str, Any]) -> str:
    """A model's results in Markdown, losses against float beside them."""
    base = result['float']
    lines = [
        f'**{name}**: float {base["mAP50"]:.2f} mAP50, {base["mAP"]:.2f} mAP',
        '',
        '| bits | library | variant | mAP50 | mAP 0.50:0.95 | scores, boxes, … (dB) |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for key in (' / '.join(row) for row in all_rows()):
        row = result['rows'].get(key)
        if row is None:
            continue
        library, variant, bits = key.split(' / ')
        head = f'| {bits} | {library} | {variant} |'
        if 'reason' in row:
            lines.append(f'{head} failed: {row["reason"]} | | |')
            continue
        points = ' | '.join(
            f'{row[kind]:.2f} ({row[kind] - base[kind]:+.2f})'
            for kind in ('mAP50', 'mAP')
        )
        ratios = (value for kind, value in row.items() if kind.endswith('_dB'))
        lines.append(f'{head} {points} | {", ".join(f"{x:.1f}" for x in ratios)} |')
    return '\n'.join(lines)


def versions(known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Versions of the libraries, as installed or as earlier rows were made with."""
    found = dict(known)
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.setdefault(name, 'not installed')
    return found


def main() -> None:
    args = parse_args()
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    logging.getLogger('nncf').setLevel(logging.ERROR)
    name = args.config.stem
    cfg = read_config(args.config, args.images, args.work_dir / name)
    try:
        comparison = Comparison(cfg, args.checkpoint, args.test_images)
    except QuantizeError as error:
        raise SystemExit(f'error: {error}') from error
    content: dict[str, Any] = {'models': {}}
    if args.json and args.json.is_file():
        content = json.loads(args.json.read_text())
    content['versions'] = versions(content.get('versions', {}))
    result = content['models'].setdefault(name, {'rows': {}})
    facts = comparison.facts()
    check_alike(result, facts, f'{args.json}: {name}')
    result.update(facts)
    for row in all_rows():
        key = ' / '.join(row)
        known = result['rows'].get(key)
        again = args.retry and known is not None and 'reason' in known
        if (known and not again) or not selected(row, args.only):
            continue
        result['rows'][key] = comparison.run(*row)
        print(key, result['rows'][key], flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(content, indent=2) + '\n')
    print(table(name, result))


if __name__ == '__main__':
    main()

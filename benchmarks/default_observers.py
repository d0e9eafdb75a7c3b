"""Which observer each preset should have: the measurement behind its default.

For each float detector of ``benchmarks/accuracy.py``, each preset and each observer:
ranges are measured on training images, and the integer model's raw head outputs on
the test images are compared with those of float, first with these ranges alone, then
with biases corrected as by default. Presets of the same formats are measured once.
What ``--json`` holds already is not done again.

    INPUT_SIZE=256 python benchmarks/default_observers.py
    INPUT_SIZE=256 python benchmarks/default_observers.py --archs mobilenet --epochs 0
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import ROOT, write_whole
from accuracy_runs import ARCHS
from detector_scores import signal_to_noise
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from peers import calibration_images, float_detector, read_config, versions
from torch import Tensor, nn

from mmquant_jacinto import MMDetQuantCalibrateModule, MMDetQuantTestModule
from mmquant_jacinto.targets.rules.table import ANY, INPUT
from mmquant_jacinto.targets.target import PRESETS, get_target

OBSERVERS = ('percentile', 'moving_average', 'minmax', 'mse')
STAGES = ('ranges', 'corrected')  # before, and after biases are corrected
BITS = 8
RESULTS = ROOT / 'benchmarks' / 'results' / 'default_observers.json'


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--archs', nargs='+', default=ARCHS, choices=ARCHS)
    parser.add_argument('--targets', nargs='+', default=list(PRESETS), choices=PRESETS)
    parser.add_argument('--observers', nargs='+', default=OBSERVERS, choices=OBSERVERS)
    parser.add_argument(
        '--runs',
        type=Path,
        default=Path('work_dirs/accuracy/bccd'),
        help='where accuracy.py left ARCH/float/epoch_30.pth',
    )
    parser.add_argument('--images', type=int, default=128, help='to calibrate on')
    parser.add_argument('--test-images', type=int, help='only the first so many')
    parser.add_argument(
        '--epochs', type=int, default=1, help='passes of correction; 0: ranges alone'
    )
    parser.add_argument('--json', type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.images < 1:
        parser.error(f'--images {args.images}: calibration needs at least one image')
    if args.epochs < 0:
        parser.error(f'--epochs {args.epochs}: use a count of passes, or 0')
    for arch in args.archs:
        path = checkpoint_of(args.runs, arch)
        if not path.is_file():
            parser.error(
                f'{path} is not there; train it by INPUT_SIZE=256 python '
                f'benchmarks/accuracy.py --archs {arch} --rows float, or name '
                'another folder by --runs'
            )
    return args


def checkpoint_of(runs: Path, arch: str) -> Path:
    """The float checkpoint of an architecture."""
    return runs / arch / 'float' / 'epoch_30.pth'


def alike(targets: list[str]) -> list[list[str]]:
    """Targets that plan alike, but for their default observer, together."""
    groups: dict[tuple, list[str]] = {}
    for target in targets:
        rules = get_target(target).rules
        planned = (
            replace(PRESETS[target], observer=''),
            rules.is_symmetric((INPUT, ANY)),
            rules.scales_channels('ConvTranspose'),
            rules.fuses('Conv', 'Add'),
        )
        groups.setdefault(planned, []).append(target)
    return list(groups.values())


def load_images(dataset: Any, detector: nn.Module, count: int | None) -> Tensor:
    """The first images of a data set as the network sees them: (N, 3, H, W)."""
    count = min(count or len(dataset), len(dataset))
    return torch.cat(
        [
            detector.data_preprocessor(pseudo_collate([dataset[i]]), False)['inputs']
            for i in range(count)
        ]
    )


def head_outputs(model: nn.Module, batches: list[Tensor]) -> list[list[Tensor]]:
    """The head's raw outputs of each batch, scores of all levels before boxes."""
    with torch.no_grad():
        raw = [model(batch, mode='tensor') for batch in batches]
    return [[x.float() for x in (*scores, *boxes)] for scores, boxes in raw]


class Detector:
    """A float detector, its images, and what it gives on the test images.

    Args:
        cfg (Config): Of :func:`peers.read_config`.
        checkpoint (Path): Float weights.
        test_images (int, optional): Only the first so many.
    """

    def __init__(
        self, cfg: Config, checkpoint: Path, test_images: int | None = None
    ) -> None:
        self.model = float_detector(cfg, checkpoint)
        batch = cfg.train_dataloader.batch_size
        images = cfg.quantize.calibration.num_images
        self.batches = calibration_images(cfg, self.model)[:images].split(batch)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        self.test = load_images(dataset, self.model, test_images).split(batch)
        self.reference = head_outputs(self.model, self.test)

    def measure(self, target: str, observer: str, epochs: int) -> dict[str, Any]:
        """How near a calibrated model comes to float.

        Args:
            target (str): The preset.
            observer (str): Of its activations.
            epochs (int): Passes of bias correction.

        Returns:
            Dict[str, Any]: By stage: decibels of ``scores``, of ``boxes``, and their
            ``mean``.
        """
        calib = MMDetQuantCalibrateModule(
            copy.deepcopy(self.model),
            dummy_input=self.batches[0][:1],
            target=target,
            observer=observer,
            bits=BITS,
            calibration=dict(epochs=epochs),
        ).train()
        references = [calib.observe(batch, mode='tensor') for batch in self.batches]
        found = {'ranges': self._compare(calib)}
        if epochs:
            calib.train()
            for epoch in range(epochs):
                lr = calib.config.calibration.lr * 0.5**epoch
                for reference, batch in zip(references, self.batches):
                    calib.correct(reference, lr, batch, mode='tensor')
            found['corrected'] = self._compare(calib)
        return found

    def _compare(self, calib: MMDetQuantCalibrateModule) -> dict[str, float]:
        tested = MMDetQuantTestModule(calib.module).eval()
        ratios = signal_to_noise(self.reference, head_outputs(tested, self.test))
        decibels = dict(zip(('scores', 'boxes'), ratios))
        decibels['mean'] = statistics.mean(ratios)
        return {name: round(value, 2) for name, value in decibels.items()}


def entries(
    content: Mapping[str, Any], stage: str
) -> Iterator[tuple[str, str, dict[str, dict[str, float]]]]:
    """Model, preset and what each observer gave, at a stage."""
    for arch, presets in content['models'].items():
        for target, observers in presets.items():
            found = {
                name: result[stage]
                for name, result in observers.items()
                if stage in result
            }
            if found:
                yield arch, target, found


def table(content: Mapping[str, Any], stage: str) -> str:
    """A stage's results in Markdown: dB of scores, of boxes and their mean."""
    lines = [
        f'| {stage} | preset | ' + ' | '.join(OBSERVERS) + ' |',
        '| --- ' * (2 + len(OBSERVERS)) + '|',
    ]
    for arch, target, found in entries(content, stage):
        best = max(found, key=lambda name: found[name]['mean'])
        cells = []
        for name in OBSERVERS:
            if name not in found:
                cells.append('')
                continue
            row = found[name]
            mean = f'{row["mean"]:.1f}'
            mean = f'**{mean}**' if name == best else mean
            cells.append(f'{mean} ({row["scores"]:.1f}, {row["boxes"]:.1f})')
        lines.append(f'| {arch} | {target} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What results depend on, besides the checkpoints."""
    return {
        'bits': BITS,
        'calibration images': args.images,
        'test images': args.test_images,
        'epochs of bias correction': args.epochs,
    }


def read_results(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier run found by the same settings, or nothing yet."""
    content: dict[str, Any] = {'settings': settings_of(args), 'models': {}}
    if args.json.is_file():
        known = json.loads(args.json.read_text())
        if known['settings'] != content['settings']:
            raise SystemExit(
                f'error: {args.json} was made with {known["settings"]}; name '
                'another file by --json'
            )
        content = known
    ours = ('torch', 'onnxruntime')
    content['versions'] = {name: versions()[name] for name in ours}
    return content


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    content = read_results(args)
    for arch in args.archs:
        folder = args.runs / 'default_observers'
        path = ROOT / f'configs/bccd/ssd_{arch}_fpn.py'
        cfg = read_config(path, args.images, folder)
        detector = Detector(cfg, checkpoint_of(args.runs, arch), args.test_images)
        presets = content['models'].setdefault(arch, {})
        for targets in alike(args.targets):
            for observer in args.observers:
                if all(observer in presets.get(name, {}) for name in targets):
                    continue
                result = detector.measure(targets[0], observer, args.epochs)
                for name in targets:
                    presets.setdefault(name, {})[observer] = result
                print(arch, ', '.join(targets), observer, result, flush=True)
                args.json.parent.mkdir(parents=True, exist_ok=True)
                write_whole(args.json, json.dumps(content, indent=2) + '\n')
    for stage in STAGES:
        print('', table(content, stage), sep='\n')


if __name__ == '__main__':
    main()

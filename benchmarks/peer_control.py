"""NNCF's accuracy-aware control on the same detectors, for the same budget.

    pip install nncf openvino          # in an environment that has the package's own
    MMQUANT_PRETRAINED=/path python benchmarks/peer_control.py \
        configs/pretrained/ssd_mobilenetv2.py configs/pretrained/yolox_nano.py \
        --points 1.0 --json benchmarks/results/peer_control.json --table table.md

It quantizes backbone, neck and head's layers in OpenVINO's format (weights per channel,
8 bits) and puts groups of quantizers back to float until the score of the test images
holds. Ours for the same engine: ``benchmarks/budget.py --target openvino``. Scores are
of the detector's own postprocessing and metric, for both.
"""

from __future__ import annotations

import argparse
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accuracy_configs import measure_rows
from detector_scores import DetectorTest, FloatNetwork, in_place, map_scores
from peer_quantizers import singles
from peers import calibration_images, float_detector, read_config


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', type=Path)
    parser.add_argument('--points', type=float, default=1.0)
    parser.add_argument('--images', type=int, default=1000, help='to calibrate on')
    parser.add_argument('--iterations', type=int, help='groups put back at most')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/control'))
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--table', type=Path, help='write the table in Markdown')
    return parser.parse_args(arguments)


class Validation:
    """Scores what NNCF makes, and counts how often it is asked.

    Args:
        test (DetectorTest): The test images.
        detector (nn.Module): In float, whose postprocessing is used.
    """

    def __init__(self, test: DetectorTest, detector: Any) -> None:
        self.test, self.detector = test, detector
        self.points: list[float] = []

    def __call__(self, compiled: Any, images: Any) -> tuple[float, None]:
        """MAP from 0 to 1 of a compiled model on all images."""
        del images  # the test's own, preprocessed and with their truths
        outputs = compiled.outputs

        def network(image: torch.Tensor) -> list[torch.Tensor]:
            found = compiled(image.numpy())
            return [torch.from_numpy(found[output].copy()) for output in outputs]

        with in_place(self.detector, network, self.test.kinds) as detector:
            metrics, _ = self.test.score(detector)
        self.points.append(map_scores(metrics)['mAP'])
        return self.points[-1] / 100, None


class Log(logging.Handler):
    """Keeps what NNCF says of accuracy and of what it put back."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if re.search(r'evert|ccuracy', line):
            self.lines.append(line)


def outcome(row: Mapping[str, Any]) -> tuple[float, float, int]:
    """Scores at the start and at the end, and operations in float, by NNCF's log."""
    text = '\n'.join(row['log'])
    drops = [float(x) for x in re.findall(r'ccuracy drop:? (-?[\d.e-]+)', text)]
    further = re.findall(r'quantization scope is (-?[\d.e-]+)', text)
    counts = re.findall(r'(\d+) out of \d+ were reverted', text)
    last = drops[-1] if not further or 'achieved' in text else float(further[-1])
    start, end = (row['float'] - 100 * drop for drop in (drops[0], last))
    return start, end, int(counts[-1]) if counts else 0


def control(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Quantize a config's detector within the budget; return what that took."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import (
        AdvancedAccuracyRestorerParameters,
    )

    cfg = read_config(path, args.images, args.work_dir / path.stem)
    detector = float_detector(cfg, Path(cfg.load_from))
    images = calibration_images(cfg, detector)
    test = DetectorTest(cfg, detector)
    metrics, _ = test.score(detector)
    network = FloatNetwork(float_detector(cfg, Path(cfg.load_from))).eval()
    with torch.no_grad():
        model = openvino.convert_model(network, example_input=images[:1])
    arrays = [image.numpy() for image in singles(images)]
    validation, log = Validation(test, detector), Log()
    nncf.nncf_logger.addHandler(log)
    start = time.monotonic()
    nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(arrays),
        nncf.Dataset([batch['inputs'].numpy() for batch in test.batches]),
        validation,
        max_drop=args.points / 100,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(arrays),
        preset=nncf.QuantizationPreset.MIXED,
        advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
            max_num_iterations=args.iterations or 2**31
        ),
    )
    seconds = time.monotonic() - start
    nncf.nncf_logger.removeHandler(log)
    return dict(
        points=args.points,
        float=round(map_scores(metrics)['mAP'], 2),
        scorings=len(validation.points),
        minutes=round(seconds / 60, 1),
        threads=torch.get_num_threads(),
        versions=dict(nncf=nncf.__version__, openvino=openvino.__version__),
        log=log.lines,
    )


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        '| network | float | 8 bits | kept | operations in float | scorings | minutes '
        '|',
        '| --- ' * 7 + '|',
    ]
    for name, row in rows.items():
        *scores, reverted = outcome(row)
        cells = [
            *(name, f'{row["float"]:.1f}', *(f'{score:.1f}' for score in scores)),
            *map(str, (reverted, row['scorings'], row['minutes'])),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    measure_rows(parse_args(), control, table)


if __name__ == '__main__':
    main()

"""INT8 latency / FP32 latency of the exported detectors, interleaved.

For each detector of ``configs/bccd``, with random weights or trained ones: the float
model, the file
of ``tools/export.py`` and the one that ONNX Runtime's own ``quantize_static`` makes
of the same float model (QDQ, per channel, U8S8), each in ONNX Runtime with all
optimizations. A round runs all of them once, so that a noisy machine disturbs them
alike; the result is the median over rounds of the ratio within a round.

    python benchmarks/latency.py --json benchmarks/results/latency_cpu.json \\
        --table docs/export.md
    python benchmarks/latency.py --size 256 --weights 'work_dirs/{name}/epoch_30.pth'
"""

import argparse
import copy
import json
import logging
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import onnx
import onnxruntime as ort
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from mmquant_jacinto import MMDetQuantCalibrateModule
from mmquant_jacinto.export.exporter import INPUT_NAME, export_onnx
from mmquant_jacinto.export.session import Session

ROOT = Path(__file__).resolve().parents[1]
MODELS_TIMED = {
    'mobilenet': 'MobileNetV2',
    'regnet': 'RegNetX-800MF',
    'resnet': 'ResNet-50',
}
RATIOS = ('int8 / float', 'quantize_static / float', 'int8 / quantize_static')
OPENVINO = 'openvino int8 / float'
# The table in a page lies between these lines.
START, END = '<!-- latency -->', '<!-- end of latency -->'
CALIBRATION_IMAGES = 4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--models', nargs='+', default=list(MODELS_TIMED), choices=MODELS_TIMED
    )
    parser.add_argument('--size', type=int, default=320)
    parser.add_argument('--rounds', type=int, default=60)
    parser.add_argument(
        '--threads', type=int, default=0, help='of the engine; 0: all cores'
    )
    parser.add_argument('--openvino', action='store_true', help='time OpenVINO too')
    parser.add_argument(
        '--weights',
        help='float checkpoints, {name} stands for the detector; random ones without',
    )
    parser.add_argument('--json', type=Path, help='where the result goes')
    parser.add_argument(
        '--table', type=Path, help=f'a page whose table, behind {START}, is renewed'
    )
    return parser.parse_args()


def build_detector(name: str, weights: Optional[str]) -> torch.nn.Module:
    """A detector with random weights, or those of a checkpoint."""
    cfg = Config.fromfile(ROOT / f'configs/bccd/ssd_{name}_fpn.py')
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if weights is not None:
        load_checkpoint(model, weights.format(name=name), map_location='cpu')
    return model


def images(count: int, size: int) -> torch.Tensor:
    """Smooth random images, 0 to 255: (N, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 16, size // 16, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size)) * 255


class _Reader(CalibrationDataReader):
    """Preprocessed images for ``quantize_static``."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Any:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT_NAME: batch}


class _Float(torch.nn.Module):
    """Backbone, neck and head, without decoding."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple:
        scores, boxes = self.model.bbox_head(self.model.extract_feat(x))
        return (*scores, *boxes)


def export_float(model: torch.nn.Module, size: int, path: Path) -> None:
    """The float model by PyTorch's own exporter, as a user has it."""
    torch.onnx.export(
        _Float(model).eval(),
        (torch.rand(1, 3, size, size),),
        path,
        input_names=[INPUT_NAME],
        opset_version=17,
        dynamo=False,
    )


def make_files(
    name: str, size: int, weights: Optional[str], folder: Path
) -> dict[str, onnx.ModelProto]:
    """The float file, ours, and that of ``quantize_static``."""
    model = build_detector(name, weights).eval()
    export_float(copy.deepcopy(model), size, folder / 'float.onnx')
    calibration = MMDetQuantCalibrateModule(
        model,
        dummy_input=images(1, size),
        target='onnxruntime',
        calibration=dict(epochs=0),
    )
    calibration.train()
    batch = calibration.as_batch(images(CALIBRATION_IMAGES, size))
    calibration(**model.data_preprocessor(batch), mode='predict')
    calibration.eval()
    exported = export_onnx(calibration, calibration.as_batch(images(1, size)))
    batches = [
        model.data_preprocessor(calibration.as_batch(x[None]))['inputs'].numpy()
        for x in images(CALIBRATION_IMAGES, size)
    ]
    quant_pre_process(str(folder / 'float.onnx'), str(folder / 'prepared.onnx'))
    quantize_static(
        str(folder / 'prepared.onnx'),
        str(folder / 'static.onnx'),
        _Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return {
        'float': onnx.load(folder / 'float.onnx'),
        'int8': exported.model,
        'quantize_static': onnx.load(folder / 'static.onnx'),
    }


def time_sessions(
    sessions: dict[str, Session], size: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each session in each round."""
    x = torch.rand(1, 3, size, size)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(rounds + 5):
        for name, session in sessions.items():
            start = time.perf_counter()
            session(x)
            elapsed = 1000 * (time.perf_counter() - start)
            if index >= 5:
                times[name].append(elapsed)
    return times


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times one detector."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(name, args.size, args.weights, Path(folder))
    sessions = {
        key: Session(model, threads=args.threads) for key, model in files.items()
    }
    if args.openvino:
        for key in ('float', 'int8'):
            sessions[f'openvino {key}'] = Session(files[key], 'openvino', args.threads)
    times = time_sessions(sessions, args.size, args.rounds)

    def ratio(name: str) -> float:
        first, _, second = name.rpartition(' / ')
        if first.startswith('openvino'):
            second = f'openvino {second}'
        pairs = zip(times[first], times[second])
        return round(statistics.median(a / b for a, b in pairs), 3)

    compared = (*RATIOS, OPENVINO) if args.openvino else RATIOS
    return {
        'milliseconds': {k: round(statistics.median(v), 2) for k, v in times.items()},
        **{name: ratio(name) for name in compared},
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    models = result['models']
    columns = [c for c in (*RATIOS, OPENVINO) if any(c in m for m in models.values())]
    titles = [
        c.replace('int8', 'INT8').replace('float', 'FP32').replace('/', '÷')
        for c in columns
    ]
    lines = [
        f'{result["size"]} × {result["size"]}, batch 1, {result["weights"]} weights, '
        f'threads: {result["threads"]}, {result["processor"]}, ONNX Runtime '
        f'{result["onnxruntime"]}; medians of {result["rounds"]} rounds:',
        '',
        '| | ' + ' | '.join(titles) + ' |',
        '| --- |' + ' --- |' * len(columns),
    ]
    for name, item in models.items():
        cells = [f'{item[c]:.3f}' if c in item else '–' for c in columns]
        lines.append(f'| {MODELS_TIMED[name]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def renew(page: Path, content: str) -> None:
    """Replaces what lies between the two marks of a page."""
    before, start, rest = page.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f'{page} lacks the lines {START} and {END}')
    page.write_text(f'{before}{start}\n{content}\n{end}{after}')


def processor() -> str:
    """Name of the processor, where the system tells it."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.partition(':')[2].strip() for line in lines if 'model name' in line]
    return found[0] if found else platform.processor()


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    init_default_scope('mmdet')
    result = {
        'processor': processor(),
        'onnxruntime': ort.__version__,
        'size': args.size,
        'rounds': args.rounds,
        'threads': args.threads or 'all',
        'weights': 'random' if args.weights is None else 'trained',
        'models': {},
    }
    for name in args.models:
        result['models'][name] = measure(name, args)
        print(name, json.dumps(result['models'][name], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    print(table(result))
    if args.table:
        renew(args.table, table(result))


if __name__ == '__main__':
    main()

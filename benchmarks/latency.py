"""INT8 latency / FP32 latency of the exported detectors, interleaved.

For each detector of ``configs/bccd``, with random weights or trained ones: the float
model, the file
of ``tools/export.py`` and the one that ONNX Runtime's own ``quantize_static`` makes
of the same float model (QDQ, per channel, U8S8), each in ONNX Runtime with all
optimizations. Its profile of each is in the JSON: microseconds by kind of node. A round
runs all of them once, so that a noisy machine disturbs them
alike; the result is the median over rounds of the ratio within a round.

    python benchmarks/latency.py --json benchmarks/results/latency_cpu.json \\
        --table docs/export.md
    python benchmarks/latency.py --size 256 --weights 'work_dirs/{name}/epoch_30.pth'
    .venv-peers/bin/python benchmarks/latency.py --openvino --threads 1 \\
        --models mobilenet regnet resnet yolox \\
        --json benchmarks/results/latency_openvino.json --table docs/targets.md

``--openvino`` times OpenVINO too (hint f32): the float file, that of ``--target
openvino`` and, where NNCF is installed, what NNCF makes of the same float file; and
tells where the time of both goes, by OpenVINO's own profile.
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import logging
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import onnx
import onnxruntime as ort
import torch
from engine_profiles import onnxruntime_profile, openvino_profile
from export_agreement import randomize
from mmengine.config import Config
from mmengine.hub import get_config
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
    'yolox': 'YOLOX-Nano',
    'rtmdet': 'RTMDet-tiny',
}
RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
RATIOS = ('int8 / float', 'quantize_static / float', 'int8 / quantize_static')
# Of networks some of whose channels have factors: without these, or with fewer.
SCALED = {
    'int8 without factors': False,
    'int8 with scale_channels=8': 8,
}
OPENVINO = ('openvino int8 / float', 'openvino nncf / float', 'openvino int8 / nncf')
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
    if name == 'rtmdet':
        cfg = get_config(RTMDET)
    else:
        path = 'pretrained/yolox_nano' if name == 'yolox' else f'bccd/ssd_{name}_fpn'
        cfg = Config.fromfile(ROOT / f'configs/{path}.py')
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if weights is None:
        randomize(model)
    else:
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
        outputs = self.model.bbox_head(self.model.extract_feat(x))
        return tuple(level for levels in outputs for level in levels)


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


def export_int8(
    model: torch.nn.Module, size: int, target: str, **quantize: Any
) -> tuple[onnx.ModelProto, list[np.ndarray], bool]:
    """Our file for a target, and the preprocessed images that gave its ranges.

    And whether channels have factors that a call in the file multiplies by.
    """
    calibration = MMDetQuantCalibrateModule(
        model,
        dummy_input=images(1, size),
        target=target,
        calibration=dict(epochs=0),
        **quantize,
    )
    calibration.train()
    batch = calibration.as_batch(images(CALIBRATION_IMAGES, size))
    calibration(**model.data_preprocessor(batch), mode='predict')
    calibration.eval()
    exported = export_onnx(calibration, calibration.as_batch(images(1, size)), target)
    batches = [
        model.data_preprocessor(calibration.as_batch(x[None]))['inputs'].numpy()
        for x in images(CALIBRATION_IMAGES, size)
    ]
    is_opened = any(
        group.is_opened
        and group.quantizer in calibration.quantization.activations.factors
        for group in calibration.quantization.plan.scaled
    )
    return exported.model, batches, is_opened


def nncf_model(path: Path, batches: list[np.ndarray]) -> Any:
    """What NNCF makes of a float file for OpenVINO; None where it is not installed."""
    if importlib.util.find_spec('nncf') is None:
        print('NNCF is not installed: its model is left out (requirements/peers.txt)')
        return None
    import nncf
    import openvino

    return nncf.quantize(
        openvino.Core().read_model(str(path)),
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
    )


def make_files(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The float file, ours, and that of ``quantize_static``; those for OpenVINO."""
    size = args.size
    model = build_detector(name, args.weights).eval()
    export_float(copy.deepcopy(model), size, folder / 'float.onnx')
    ours, batches, is_opened = export_int8(copy.deepcopy(model), size, 'onnxruntime')
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
    files = {
        'float': onnx.load(folder / 'float.onnx'),
        'int8': ours,
        'quantize_static': onnx.load(folder / 'static.onnx'),
    }
    if is_opened:
        for key, scale_channels in SCALED.items():
            files[key] = export_int8(
                copy.deepcopy(model), size, 'onnxruntime', scale_channels=scale_channels
            )[0]
    if args.openvino:
        files['openvino float'] = files['float']
        files['openvino int8'] = export_int8(model, size, 'openvino')[0]
        theirs = nncf_model(folder / 'float.onnx', batches)
        if theirs is not None:
            files['openvino nncf'] = theirs
    return files


def compile_openvino(model: Any, threads: int, **settings: Any) -> Any:
    """A file, or a model of OpenVINO's, compiled: float32 where it is not integer."""
    import openvino

    core = openvino.Core()
    if isinstance(model, onnx.ModelProto):
        model = core.read_model(model.SerializeToString())
    settings['INFERENCE_PRECISION_HINT'] = 'f32'
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    return core.compile_model(model, 'CPU', settings)


def time_sessions(
    sessions: dict[str, Callable[[torch.Tensor], Any]], size: int, rounds: int
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


def session_of(key: str, model: Any, threads: int) -> Callable[[torch.Tensor], Any]:
    """Runs a file in the engine that its name in the result says."""
    if not key.startswith('openvino'):
        return Session(model, threads=threads)
    compiled = compile_openvino(model, threads)
    return lambda x: compiled([x.numpy()])


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times one detector."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(name, args, Path(folder))
    sessions = {
        key: session_of(key, model, args.threads) for key, model in files.items()
    }
    times = time_sessions(sessions, args.size, args.rounds)

    def ratio(name: str) -> float:
        first, _, second = name.rpartition(' / ')
        if first.startswith('openvino'):
            second = f'openvino {second}'
        pairs = zip(times[first], times[second])
        return round(statistics.median(a / b for a, b in pairs), 3)

    found: dict[str, Any] = {
        'milliseconds': {k: round(statistics.median(v), 2) for k, v in times.items()},
        **{name: ratio(name) for name in RATIOS},
    }
    for key in [key for key in SCALED if key in files]:
        found[f'{key} / float'] = ratio(f'{key} / float')
    found['profiles'] = {
        key: onnxruntime_profile(files[key], args.size, args.threads)
        for key in ('float', 'int8', 'quantize_static')
    }
    if args.openvino:
        there = [key for key in files if key in ('openvino int8', 'openvino nncf')]
        compared = OPENVINO if len(there) == 2 else OPENVINO[:1]
        found.update({name: ratio(name) for name in compared})
        for key in there:
            compiled = compile_openvino(files[key], args.threads, PERF_COUNT=True)
            found['profiles'][key] = openvino_profile(compiled, args.size)
    return found


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    models = result['models']
    known = (*RATIOS, *(f'{key} / float' for key in SCALED), *OPENVINO)
    columns = [c for c in known if any(c in m for m in models.values())]
    titles = [
        c.replace('int8', 'INT8')
        .replace('float', 'FP32')
        .replace('/', '÷')
        .replace('openvino', 'OpenVINO')
        .replace('nncf', 'NNCF')
        for c in columns
    ]
    openvino = f', OpenVINO {result["openvino"]}' if 'openvino' in result else ''
    lines = [
        f'{result["size"]} × {result["size"]}, batch 1, {result["weights"]} weights, '
        f'threads: {result["threads"]}, {result["processor"]}, ONNX Runtime '
        f'{result["onnxruntime"]}{openvino}; medians of {result["rounds"]} rounds:',
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
    if args.openvino:
        result['openvino'] = importlib.metadata.version('openvino')
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

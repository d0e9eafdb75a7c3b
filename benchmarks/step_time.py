"""QAT step / float step, and calibration / float inference, interleaved.

Each round runs one step of every variant one after the other. The detectors are
those of ``configs/bccd`` (SSD head on FPN), or others by ``--models``, with random
weights and random ground truth.

    python benchmarks/step_time.py --json benchmarks/results/step_time_cpu.json
    python benchmarks/step_time.py --size 64 --models mobilenet regnet resnet \\
        retinanet_r18 yolox_tiny retinanet_swin deformable_detr \\
        --json benchmarks/results/step_time_small.json

Where the images are small the times are those of the calls, not of the work.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import torch
from interleaved import interleave, ratios, timed
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from timed_networks import DETECTORS, NETWORKS, begin_timing, build, random_batch

from mmquant_jacinto import MMDetQuantCalibrateModule, MMDetQuantTrainModule
from mmquant_jacinto.quantizers.statistics.ranges import OBSERVED_EVERY, STEPS_OBSERVED


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--models', nargs='+', default=list(DETECTORS), choices=NETWORKS
    )
    parser.add_argument('--target', default='jacinto')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--amp', action='store_true')
    parser.add_argument('--json', type=Path, help='where the result goes')
    return parser.parse_args()


def train_step(
    model: torch.nn.Module, batch: dict[str, Any], amp: bool
) -> Callable[[], None]:
    """One optimizer step on the batch, as a function without arguments."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    wrapper = (AmpOptimWrapper if amp else OptimWrapper)(optimizer=optimizer)
    return lambda: model.train_step(copy.deepcopy(batch), wrapper)


def qat_variants(
    model: torch.nn.Module,
    batch: dict[str, Any],
    args: argparse.Namespace,
    names: Sequence[str] = ('live', 'settled', 'frozen'),
) -> dict[str, Callable[[], None]]:
    """QAT at the start, when each step observes; later; and frozen."""
    variants = {}
    for name in names:
        epoch = 10 if name == 'frozen' else 0
        qat = MMDetQuantTrainModule(
            copy.deepcopy(model), dummy_input=batch, target=args.target, total_epochs=12
        )
        qat.set_epoch(epoch, 12)
        qat.train()
        if name == 'frozen':
            calibrate_once(qat, batch)
        variants[name] = train_step(qat, batch, args.amp)
        if name == 'settled':
            variants[name] = settle(qat, variants[name])
    return variants


def settle(
    qat: MMDetQuantTrainModule, step: Callable[[], None]
) -> Callable[[], list[float]]:
    """Steps of a later time, when only some of them observe: a whole cycle."""
    step()
    activations = qat.quantization.activations
    activations.steps.fill_(STEPS_OBSERVED)
    activations.refresh()

    def cycle() -> list[float]:
        return [timed(step) for _ in range(OBSERVED_EVERY)]

    return cycle


def calibrate_once(qat: MMDetQuantTrainModule, batch: dict[str, Any]) -> None:
    """Gives a frozen model the ranges that it would have by then."""
    activations = qat.quantization.activations
    activations.observing = True
    with torch.no_grad():
        data = qat.module.data_preprocessor(copy.deepcopy(batch), False)
        qat.module._run_forward(data, mode='loss')
    activations.observing = False


def calibration_variants(
    model: torch.nn.Module, batch: dict[str, Any], args: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Float inference, and the two passes of calibration."""
    plain = copy.deepcopy(model).eval()
    calib = MMDetQuantCalibrateModule(
        copy.deepcopy(model), dummy_input=batch, target=args.target
    )
    calib.train()
    step = calib.calibrate_step
    reference = step(copy.deepcopy(batch), None, 0.0)

    def infer() -> None:
        with torch.no_grad():
            plain.val_step(copy.deepcopy(batch))

    # The passes of a calibration do not alternate: the phase stays.
    correct = copy.deepcopy(calib)
    return dict(
        inference=infer,
        ranges=lambda: step(copy.deepcopy(batch), None, 0.0),
        biases=lambda: correct.calibrate_step(copy.deepcopy(batch), reference, 0.05),
    )


def measure_preparation(
    model: torch.nn.Module, batch: dict[str, Any], args: argparse.Namespace
) -> float:
    """Seconds to prepare, in float forward passes (median of three)."""
    values = []
    for _ in range(3):
        plain = copy.deepcopy(model).eval()
        start = time.perf_counter()
        with torch.no_grad():
            plain.val_step(copy.deepcopy(batch))
        forward = time.perf_counter() - start
        start = time.perf_counter()
        MMDetQuantTrainModule(
            copy.deepcopy(model), dummy_input=batch, target=args.target
        )
        values.append((time.perf_counter() - start) / forward)
    return statistics.median(values)


def main() -> None:
    args = parse_args()
    facts = begin_timing()
    if args.device == 'cuda':
        facts['processor'] = torch.cuda.get_device_name()
    batch = random_batch(args.batch, args.size)
    report: dict[str, Any] = dict(
        **facts,
        device=args.device,
        amp=args.amp,
        target=args.target,
        batch=args.batch,
        size=args.size,
        rounds=args.rounds,
        models={},
    )
    for name in args.models:
        model = build(name).to(args.device)
        train = dict(
            float=train_step(copy.deepcopy(model).train(), batch, args.amp),
            **qat_variants(model, batch, args),
        )
        result = ratios(interleave(train, args.rounds), 'float')
        calibration = calibration_variants(model, batch, args)
        result.update(ratios(interleave(calibration, args.rounds), 'inference'))
        result['preparation'] = measure_preparation(model, batch, args)
        report['models'][name] = result
        print(name, {key: round(value, 3) for key, value in result.items()}, flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()

"""What a QAT step and a calibration add to float, part after part, interleaved.

Each variant does what the one before it does, and one thing more:

- watched: hooks of modules and dispatch of functions, and nothing done at any;
- grids: weights are folded and put on their grids, activations on theirs;
- observed: ranges are measured;
- moments: so are robust means of all layers' outputs, which biases are corrected by.

    python benchmarks/step_parts.py --json benchmarks/results/step_parts.json

At 64 x 64 a step takes as long as its calls do, at 256 x 256 its work counts too.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any, Callable

import torch
from interleaved import interleave, ratios
from step_time import train_step
from timed_networks import DETECTORS, NETWORKS, begin_timing, build, random_batch

from mmquant_jacinto import MMDetQuantCalibrateModule, MMDetQuantTrainModule

TRAINING = ('watched', 'grids', 'observed')
CALIBRATION = ('watched', 'observed', 'moments')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--models', nargs='+', default=list(DETECTORS), choices=NETWORKS
    )
    parser.add_argument('--sizes', type=int, nargs='+', default=[64, 256])
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='where the result goes')
    return parser.parse_args()


def training_variants(
    model: torch.nn.Module, batch: dict[str, Any]
) -> dict[str, Callable[[], None]]:
    """Steps of a training, by what is done in them."""
    variants = dict(float=train_step(copy.deepcopy(model).train(), batch, False))
    for name in TRAINING:
        qat = MMDetQuantTrainModule(
            copy.deepcopy(model), dummy_input=batch, total_epochs=12
        ).train()
        variants[name] = train_step(qat, batch, False)
        variants[name]()  # finds the first ranges
        if name == 'watched':
            qat.quantization.set_phase('float')
        elif name == 'grids':
            qat.quantization.activations.observing = False
    return variants


def calibration_variants(
    model: torch.nn.Module, batch: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Passes that measure, by what they measure."""
    plain = copy.deepcopy(model).eval()
    variants: dict[str, Callable[[], Any]] = dict(
        float=lambda: plain.val_step(copy.deepcopy(batch))
    )
    for name in CALIBRATION:
        options = {} if name == 'moments' else dict(calibration=dict(epochs=0))
        calib = MMDetQuantCalibrateModule(
            copy.deepcopy(model), dummy_input=batch, **options
        ).train()
        if name == 'watched':
            calib.quantization.set_phase('float')
            variants[name] = passing(calib, batch)
        else:
            step = calib.calibrate_step
            variants[name] = lambda step=step: step(copy.deepcopy(batch), None, 0.0)
    return variants


def passing(
    calib: MMDetQuantCalibrateModule, batch: dict[str, Any]
) -> Callable[[], Any]:
    """A pass as a calibration runs it, in the phase that it is in."""

    def run() -> None:
        args, kwargs = calib.arguments(copy.deepcopy(batch))
        calib.module(*args, **kwargs)

    return run


def parts(found: dict[str, float], order: tuple[str, ...]) -> dict[str, float]:
    """What each variant adds to the one before it, in times of float."""
    before = 1.0
    added = {'float_seconds': found['float_seconds']}
    for name in order:
        added[name] = found[name] - before
        before = found[name]
    return added


def main() -> None:
    args = parse_args()
    report: dict[str, Any] = dict(
        **begin_timing(),
        batch=args.batch,
        rounds=args.rounds,
        models={},
    )
    for name in args.models:
        model = build(name)
        for size in args.sizes:
            batch = random_batch(args.batch, size)
            training = interleave(training_variants(model, batch), args.rounds)
            with torch.no_grad():
                passes = calibration_variants(model, batch)
                calibration = interleave(passes, args.rounds)
            found = dict(
                training=parts(ratios(training, 'float'), TRAINING),
                calibration=parts(ratios(calibration, 'float'), CALIBRATION),
            )
            report['models'].setdefault(name, {})[size] = found
            print(name, size, found, flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
    main()

"""Test on integers / float inference, interleaved, by network, target and batch.

What is timed is the network up to its predictions, as ``test`` runs it: a round runs
every variant once, and the result is the median over rounds of the ratio within a
round. Random weights; ranges are those of the images that are timed.

    python benchmarks/evaluation_time.py --json benchmarks/results/evaluation_time.json
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any, Callable

import torch
from interleaved import interleave, ratios
from timed_networks import LABELS, NETWORKS, begin_timing, build, random_batch

from mmquant_jacinto import MMDetQuantCalibrateModule

TARGETS = ('jacinto', 'onnxruntime')
BATCHES = (1, 8)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument('--targets', nargs='+', default=TARGETS)
    parser.add_argument('--batches', nargs='+', type=int, default=BATCHES)
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--json', type=Path, help='where the result goes')
    return parser.parse_args()


def forward(model: torch.nn.Module, batch: dict[str, Any]) -> Callable[[], Any]:
    """The network and its heads on a batch that is on its way already."""
    module = getattr(model, 'module', model)
    data = module.data_preprocessor(copy.deepcopy(batch), False)

    def run() -> Any:
        with torch.no_grad():
            return module(data['inputs'], data['data_samples'], mode='tensor')

    return run


def calibrated(
    model: torch.nn.Module, batch: dict[str, Any], target: str, **quantize: Any
) -> Any:
    """The model with the ranges of one batch."""
    module = MMDetQuantCalibrateModule(
        copy.deepcopy(model), dummy_input=batch, target=target, **quantize
    ).train()
    module.calibrate_step(copy.deepcopy(batch), None, 0.0)
    module.quantization.activations.settle()
    return module


def measure(name: str, target: str, args: argparse.Namespace) -> dict[str, Any]:
    """Ratios of a network, by batch."""
    model = build(name).eval()
    found = {}
    test = calibrated(model, random_batch(1, args.size), target).eval()
    for size in args.batches:
        batch = random_batch(size, args.size)
        variants = dict(float=forward(model, batch), integer=forward(test, batch))
        found[str(size)] = ratios(interleave(variants, args.rounds), 'float')
    return found


def main() -> None:
    args = parse_args()
    report: dict[str, Any] = dict(
        **begin_timing(),
        size=args.size,
        rounds=args.rounds,
        models={},
    )
    for name in args.models:
        report['models'][name] = {}
        for target in args.targets:
            found = measure(name, target, args)
            report['models'][name][target] = found
            short = {size: round(row['integer'], 3) for size, row in found.items()}
            print(LABELS[name], target, short, flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

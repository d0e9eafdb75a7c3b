"""How long fine-tuning and rounding take, and where it goes, on a CPU.

Fine-tuning: an iteration ÷ a float forward pass of the same batch. Rounding: seconds of
a network, the layers that take longest, and by method the milliseconds of a layer.
Random weights, random images.

    python benchmarks/tuning_time.py --json benchmarks/results/tuning_time.json
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from evaluation_time import calibrated, forward
from timed_networks import DETECTORS, LABELS, NETWORKS, build, random_batch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiled

from mmquant_jacinto.methods import reconstruction

ITERATIONS, TOP = 12, 8
METHODS = ('coordinate_descent', 'adaround')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--models', nargs='+', default=list(DETECTORS), choices=NETWORKS
    )
    parser.add_argument('--target', default='onnxruntime')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--json', type=Path, help='where the result goes')
    return parser.parse_args()


def seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forward_seconds(model: torch.nn.Module, batch: dict[str, Any]) -> float:
    """A float forward pass, the median of five."""
    run = forward(model, batch)
    return statistics.median(seconds(run) for _ in range(5))


def measure_finetuning(
    model: torch.nn.Module, batch: dict[str, Any], target: str
) -> dict[str, Any]:
    """An iteration in float forward passes, and what takes its time."""
    module = calibrated(
        model, batch, target, finetune=dict(iterations=ITERATIONS, augment=False)
    )
    unit = forward_seconds(copy.deepcopy(model).eval(), batch)
    with profiled(activities=[ProfilerActivity.CPU]) as found:
        taken = seconds(lambda: module.finetune([batch]))
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return dict(
        forward_ms=1e3 * unit,
        iteration=taken / ITERATIONS / unit,
        shares={e.key: e.self_cpu_time_total / total for e in events[:TOP]},
    )


def measure_rounding(
    model: torch.nn.Module, batch: dict[str, Any], target: str, method: str
) -> dict[str, Any]:
    """Seconds of a network, of its search alone, and its longest layers."""
    module = calibrated(model, batch, target, rounding=method)
    layers: list[tuple[float, list[int]]] = []
    original = reconstruction.round_weight

    def timed(task: Any, options: Any) -> Any:
        start = time.perf_counter()
        result = original(task, options)
        layers.append((time.perf_counter() - start, list(task.weight.shape)))
        return result

    reconstruction.round_weight = timed
    try:
        total = seconds(lambda: module.round_weights([batch]))
    finally:
        reconstruction.round_weight = original
    layers.sort(key=lambda item: -item[0])
    return dict(
        seconds=total,
        searching=sum(item[0] for item in layers),
        layers=len(layers),
        median_ms=1e3 * statistics.median(item[0] for item in layers),
        longest=[
            dict(weight=shape, ms=round(1e3 * taken)) for taken, shape in layers[:TOP]
        ],
    )


def main() -> None:
    args = parse_args()
    report: dict[str, Any] = dict(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        target=args.target,
        batch=args.batch,
        size=args.size,
        models={},
    )
    batch = random_batch(args.batch, args.size)
    for name in args.models:
        model = build(name)
        found = dict(finetuning=measure_finetuning(model, batch, args.target))
        for method in METHODS:
            found[method] = measure_rounding(model, batch, args.target, method)
        report['models'][name] = found
        short = {m: round(found[m]['seconds'], 1) for m in METHODS}
        iteration = round(found['finetuning']['iteration'], 2)
        print(LABELS[name], f'iteration {iteration}', short, flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

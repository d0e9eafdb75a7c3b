"""Peak memory of a step above the built model, quantized / float, on a CPU.

Each variant runs in a process of its own, which takes the model's first steps, asks the
kernel to forget its highest mark (``/proc/self/clear_refs``), and takes further ones:
the new mark less what the process holds between steps is what a step takes.

    python benchmarks/memory.py --json benchmarks/results/memory_cpu.json
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import torch
from evaluation_time import forward, quantized
from step_time import calibration_variants, qat_variants, train_step
from timed_networks import LABELS, NETWORKS, build, random_batch

MODELS = ('mobilenet', 'resnet', 'retinanet_r18')
# By what a variant is divided by.
VARIANTS = {
    'float': ('live', 'settled', 'frozen'),
    'inference': ('ranges', 'biases'),
    'forward': ('test',),
}
STEPS = 3
# Memory that is freed goes back at once, so that the mark is of what is held.
ALLOCATOR = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=MODELS, choices=NETWORKS)
    parser.add_argument('--target', default='jacinto')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--repeats', type=int, default=3, help='processes of each')
    parser.add_argument('--json', type=Path, help='where the result goes')
    parser.add_argument('--variant', help=argparse.SUPPRESS)  # of such a process
    args = parser.parse_args()
    args.amp = False
    return args


def step_of(name: str, variant: str, args: argparse.Namespace) -> Callable[[], Any]:
    """A step of a variant; all else that it was made of is gone."""
    model, batch = build(name), random_batch(args.batch, args.size)
    if variant == 'float':
        return train_step(model.train(), batch, False)
    if variant in VARIANTS['float']:
        return qat_variants(model, batch, args, (variant,))[variant]
    if variant == 'test':
        return forward(quantized(model, batch, args.target), batch)
    if variant == 'forward':
        return forward(model.eval(), batch)
    return calibration_variants(model, batch, args)[variant]


def kilobytes(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f'/proc/self/status has no {field}')


def measure_here(args: argparse.Namespace) -> float:
    """MiB that a step takes beyond what is there between steps."""
    step = step_of(args.models[0], args.variant, args)
    step()
    step()
    gc.collect()
    held = kilobytes('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    for _ in range(STEPS):
        step()
    return (kilobytes('VmHWM') - held) / 1024


def measure(name: str, variant: str, args: argparse.Namespace) -> float:
    """The median of some processes."""
    options = ['--models', name, '--variant', variant, '--target', args.target]
    options += ['--batch', str(args.batch), '--size', str(args.size)]
    values = []
    for _ in range(args.repeats):
        done = subprocess.run(
            [sys.executable, __file__, *options],
            env={**os.environ, **ALLOCATOR},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        values.append(float(done.stdout.splitlines()[-1]))
    return statistics.median(values)


def main() -> None:
    args = parse_args()
    if args.variant:
        print(measure_here(args))
        return
    report: dict[str, Any] = dict(
        torch=torch.__version__,
        target=args.target,
        batch=args.batch,
        size=args.size,
        models={},
    )
    for name in args.models:
        found = {}
        for base, variants in VARIANTS.items():
            found[f'{base}_mib'] = measure(name, base, args)
            for variant in variants:
                taken = measure(name, variant, args)
                found[variant] = taken / found[f'{base}_mib']
        report['models'][name] = found
        short = {key: round(value, 3) for key, value in found.items()}
        print(LABELS[name], short, flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

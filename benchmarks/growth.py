"""What grows with a model's layers, or with the number of processes.

Chains of 3 x 3 convolutions with batch normalization and ReLU, so small that only the
bookkeeping counts: preparation (recording, planning, setting up), what a step does
beyond the float one, and what the state has beyond the float one, each by layer. With
several processes: a step's collectives (gloo).

    python benchmarks/growth.py --json benchmarks/results/growth_cpu.json
"""

import argparse
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import nn

from mmquant_jacinto import QuantTrainModule

LAYERS = (50, 100, 200, 400, 800, 1300)
PROCESSES = (1, 2, 4)
OF_PROCESSES = 200  # layers where processes are compared
CHANNELS, SIZE, STEPS, PORT = 4, 4, 5, 29671


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--layers', nargs='+', type=int, default=LAYERS)
    parser.add_argument('--processes', nargs='+', type=int, default=PROCESSES)
    parser.add_argument('--json', type=Path, help='where the result goes')
    parser.add_argument('--port', type=int, default=PORT)
    parser.add_argument('--rank', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--world', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def chain(layers: int) -> nn.Module:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        parts += [conv, nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    return nn.Sequential(*parts)


def seconds_of_step(model: nn.Module, image: torch.Tensor) -> float:
    """Processor seconds of forward and backward passes, the median of some."""
    values = []
    for _ in range(STEPS + 1):
        start = time.process_time()
        model(image).sum().backward()
        values.append(time.process_time() - start)
    return statistics.median(values[1:])


def state_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def measure(layers: int) -> dict[str, float]:
    """Of one length, by layer."""
    plain = chain(layers).train()
    image = torch.randn(1, CHANNELS, SIZE, SIZE)
    start = time.process_time()
    quantized = QuantTrainModule(copy.deepcopy(plain), image, target='jacinto').train()
    preparation = time.process_time() - start
    further = seconds_of_step(quantized, image) - seconds_of_step(plain, image)
    more = state_bytes(quantized.module) - state_bytes(plain)
    return dict(
        preparation_ms=1e3 * preparation / layers,
        step_ms=1e3 * further / layers,
        state_bytes=more / layers,
    )


def one_of_many(args: argparse.Namespace) -> None:
    """A process of a group: prints a step's seconds, if it is the first."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(args.port))
    torch.set_num_threads(1)
    if args.world > 1:
        dist.init_process_group('gloo', rank=args.rank, world_size=args.world)
    image = torch.randn(1, CHANNELS, SIZE, SIZE)
    module = QuantTrainModule(chain(OF_PROCESSES), image, target='jacinto').train()
    step_ms = 1e3 * seconds_of_step(module, image)
    calls = count_collectives()
    module(image).sum().backward()
    if args.rank == 0:
        found = dict(step_ms=step_ms, collectives=len(calls))
        print(json.dumps(found))
    if args.world > 1:
        dist.destroy_process_group()


def count_collectives() -> list[str]:
    """Names of the collectives that are called from now on."""
    calls: list[str] = []

    def counted(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    for name in ('all_reduce', 'all_gather', 'all_gather_into_tensor', 'broadcast'):
        setattr(dist, name, counted(name, getattr(dist, name)))
    return calls


def measure_processes(world: int, args: argparse.Namespace) -> dict[str, float]:
    options = ['--world', str(world), '--port', str(args.port + world)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, '--rank', str(rank), *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    texts = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f'one of {world} processes failed')
    return json.loads(texts[0].splitlines()[-1])


def main() -> None:
    args = parse_args()
    if args.rank is not None:
        one_of_many(args)
        return
    # Threads that wait would count as work.
    torch.set_num_threads(1)
    report: dict[str, Any] = dict(torch=torch.__version__, layers={}, processes={})
    for layers in args.layers:
        report['layers'][layers] = found = measure(layers)
        print(
            layers, {key: round(value, 3) for key, value in found.items()}, flush=True
        )
    for world in args.processes:
        report['processes'][world] = found = measure_processes(world, args)
        print(f'{world} processes', found, flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

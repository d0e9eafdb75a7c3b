"""QAT step / float step of a backbone with a pyramid, and memory, by precision.

Variants are interleaved, so that a noisy machine disturbs them alike; a ratio is the
median over rounds of the ratio within a round. Memory is the peak of a step above what
the model and the optimizer hold.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, Callable

import torch
from networks import build, loss_of
from torch import Tensor, nn

from mmquant_jacinto import QuantTrainModule
from mmquant_jacinto.quantizers.kernels import triton_kernels
from mmquant_jacinto.quantizers.statistics.ranges import STEPS_OBSERVED

DTYPES = dict(fp32=None, fp16=torch.float16, bf16=torch.bfloat16)
# Batch, side of the images, and rounds.
LARGE, SMALL = (16, 512, 3), (2, 64, 7)
# Hooked: watched as if quantized, and nothing done.
VARIANTS = ('float', 'hooked', 'live', 'settled', 'frozen')
TOP = 15  # operations in a profile


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--part', choices=['first', 'more'], help='of the rows; all')
    parser.add_argument('--json', type=Path, required=True)
    parser.add_argument('--profiles', type=Path, help='folder for profiles')
    return parser.parse_args()


class Trainer:
    """Steps of one variant of a model.

    Args:
        model (nn.Module): Float or wrapped, in training mode.
        images (Tensor): The batch of all steps.
        dtype (torch.dtype, optional): Of autocast; None: none.
    """

    def __init__(self, model: nn.Module, images: Tensor, dtype: Any) -> None:
        self.model, self.images, self.dtype = model, images, dtype
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        device = images.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

    def __call__(self) -> None:
        kind, half = self.images.device.type, self.dtype is not None
        with torch.autocast(kind, dtype=self.dtype, enabled=half):
            loss = loss_of(self.model(self.images))
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def make_variant(
    name: str, model: nn.Module, images: Tensor, dtype: Any, target: str
) -> Trainer:
    """A float model, or QAT at the start, later, or when all is frozen."""
    model = copy.deepcopy(model).train()
    if name == 'float':
        return Trainer(model, images, dtype)
    qat = QuantTrainModule(model, images[:1], total_epochs=12, target=target).train()
    trainer = Trainer(qat, images, dtype)
    trainer()
    if name == 'hooked':
        qat.quantization.set_phase('float')
    elif name == 'frozen':
        qat.set_epoch(10, 12)
        qat.train()
    elif name == 'settled':
        activations = qat.quantization.activations
        activations.steps.fill_(STEPS_OBSERVED)
        activations.refresh()
    return trainer


def synchronize(device: str) -> None:
    if device == 'cuda':
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], None], device: str, steps: int) -> float:
    # On a CPU, where this shows what the host takes, others may be at work too.
    clock = time.perf_counter if device == 'cuda' else time.process_time
    synchronize(device)
    start = clock()
    for _ in range(steps):
        run()
    synchronize(device)
    return (clock() - start) / steps


def peak_of(run: Callable[[], None], device: str) -> float:
    """MiB that a step takes beyond what is there between steps."""
    if device != 'cuda':
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(
    batch: int,
    size: int,
    rounds: int,
    precision: str,
    target: str,
    layout: str,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Times and memory of all variants, side by side."""
    images = torch.randn(batch, 3, size, size, device=args.device)
    model = build(args.device)
    if layout == 'channels_last':
        images = images.contiguous(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)
    trainers = {
        name: make_variant(name, model, images, DTYPES[precision], target)
        for name in VARIANTS
    }
    # Four steps: of the settled ones, one of them observes.
    steps = 4
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for round_ in range(rounds + 1):
        for name, trainer in trainers.items():
            elapsed = seconds_of(trainer, args.device, steps)
            if round_:  # the first warms up
                times[name].append(elapsed)
    result: dict[str, Any] = dict(
        batch=batch, size=size, precision=precision, target=target, layout=layout
    )
    result['float_ms'] = round(1e3 * statistics.median(times['float']), 3)
    for name in VARIANTS[1:]:
        ratio = statistics.median(
            value / unit for value, unit in zip(times[name], times['float'])
        )
        result[name] = round(ratio, 3)
    result['peak_mib'] = {
        name: round(peak_of(trainer, args.device)) for name, trainer in trainers.items()
    }
    profiled = 'fp16', 'jacinto', 'contiguous'
    if args.profiles is not None and (precision, target, layout) == profiled:
        for name in ('float', 'live', 'frozen'):
            label = f'{precision}_{batch}x{size}_{layout}_{name}'
            profile(trainers[name], args.device, label, args.profiles)
    return result


def profile(run: Callable[[], None], device: str, label: str, folder: Path) -> None:
    """Writes what takes longest on the device and on the host."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if device == 'cuda':
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(2):
            run()
        synchronize(device)
    averages = found.key_averages()
    keys = ['self_cpu_time_total']
    if device == 'cuda':
        keys.append('self_device_time_total')
    with (folder / 'profiles.txt').open('a') as file:
        for key in keys:
            table = averages.table(sort_by=key, row_limit=TOP, max_name_column_width=60)
            print(f'== {label}, by {key}, two steps\n{table}', file=file)


def cases(args: argparse.Namespace) -> list[tuple]:
    """Rows by worth: the second half is for a fast machine."""
    large, small = (LARGE, SMALL) if args.device == 'cuda' else ((2, 64, 8),) * 2
    first = [
        (*large, 'fp16', 'jacinto', 'contiguous'),
        # Small inputs show what the host takes, which no target changes.
        (*small, 'fp32', 'jacinto', 'contiguous'),
        (*large, 'fp32', 'jacinto', 'contiguous'),
        (*small, 'fp16', 'jacinto', 'contiguous'),
    ]
    more = [
        (*large, 'fp16', 'jacinto', 'channels_last'),
        (*large, 'bf16', 'jacinto', 'contiguous'),
        (*large, 'fp16', 'onnxruntime', 'contiguous'),
        (*small, 'bf16', 'jacinto', 'contiguous'),
        (*large, 'fp32', 'onnxruntime', 'contiguous'),
        (*large, 'bf16', 'onnxruntime', 'contiguous'),
    ]
    parts = dict(first=first, more=more)
    return parts[args.part] if args.part else first + more


def main() -> None:
    args = parse_args()
    if args.profiles is not None:
        args.profiles.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = dict(
        kernels='Triton' if triton_kernels.triton is not None else 'torch',
        tf32=dict(
            cudnn=torch.backends.cudnn.allow_tf32,
            matmul=torch.backends.cuda.matmul.allow_tf32,
        ),
        rows=[],
    )
    for case in cases(args):
        try:
            row = measure(*case, args)
        except Exception as error:  # noqa: BLE001 - it is in the report
            row = dict(case=list(case), error=f'{type(error).__name__}: {error}'[:500])
        print(row, flush=True)
        report['rows'].append(row)
        # What is there counts when the time is up.
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

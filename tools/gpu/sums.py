"""Which convolutions add integers exactly, and how long they take.

Operands are integers of as many bits as their sum leaves below 2^24. The share of
elements that differ from the sum is counted as computed, and after rounding.
"""

import argparse
import json
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# (batch, inputs, outputs, kernel, size, groups, bits of activations, of weights)
LAYERS = dict(
    wide=(2, 256, 256, 3, 32, 1, 8, 5),
    large=(2, 64, 64, 3, 128, 1, 8, 6),
    kernel5=(2, 64, 64, 5, 64, 1, 8, 5),
    kernel1=(2, 256, 256, 1, 64, 1, 8, 8),
    depthwise16=(2, 256, 256, 3, 64, 256, 16, 5),
    few16=(2, 8, 64, 3, 64, 1, 14, 4),
)


@contextmanager
def settings(**values: bool) -> Any:
    cudnn = torch.backends.cudnn
    before = {name: getattr(cudnn, name) for name in values}
    for name, value in values.items():
        setattr(cudnn, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(cudnn, name, value)


WAYS = dict(
    tf32=(torch.float32, dict(allow_tf32=True, benchmark=False)),
    tf32_benchmark=(torch.float32, dict(allow_tf32=True, benchmark=True)),
    fp32=(torch.float32, dict(allow_tf32=False, benchmark=False)),
    fp32_benchmark=(torch.float32, dict(allow_tf32=False, benchmark=True)),
    fp32_deterministic=(torch.float32, dict(allow_tf32=False, deterministic=True)),
    fp64=(torch.float64, dict(benchmark=False)),
    without_cudnn=(torch.float32, dict(enabled=False)),
    fp64_without_cudnn=(torch.float64, dict(enabled=False)),
)


def timed(run: Any, device: str) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(5):
        if device == 'cuda':
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == 'cuda':
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[2]


def operands(layer: tuple) -> tuple[Tensor, Tensor, int]:
    batch, inputs, outputs, kernel, size, groups, x_bits, w_bits = layer
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(
        -(2 ** (x_bits - 1)),
        2 ** (x_bits - 1),
        (batch, inputs, size, size),
        generator=generator,
    )
    weight = torch.randint(
        -(2 ** (w_bits - 1)),
        2 ** (w_bits - 1),
        (outputs, inputs // groups, kernel, kernel),
        generator=generator,
    )
    return x, weight, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--json', type=Path, required=True)
    args = parser.parse_args()
    report = {}
    for name, layer in LAYERS.items():
        x, weight, groups = operands(layer)
        padding = weight.shape[-1] // 2
        exact = F.conv2d(x.double(), weight.double(), None, 1, padding, 1, groups)
        exact = exact.to(args.device)
        rows = {}
        for way, (dtype, values) in WAYS.items():
            a, b = (item.to(args.device, dtype) for item in (x, weight))
            run = partial(F.conv2d, a, b, None, 1, padding, 1, groups)
            with settings(**values):
                found, ms = run(), timed(run, args.device)
            rows[way] = dict(
                wrong=float((found != exact).double().mean()),
                wrong_after_rounding=float((found.round() != exact).double().mean()),
                ms=round(ms, 3),
            )
        rows['largest_sum'] = float(exact.abs().max())
        report[name] = rows
        print(name, rows, flush=True)
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

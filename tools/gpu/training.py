"""Two steps of QAT each way that trainings on a GPU go: DDP, EMA, AMP and the like."""

import argparse
import copy
import json
import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import ExponentialMovingAverage
from networks import ResNetFPN, loss_of
from torch import nn

from mmquant_jacinto import QuantTestModule, QuantTrainModule

SMALL = dict(depths=(1, 1), width=16, pyramid=32)


def network(device: str) -> nn.Module:
    torch.manual_seed(0)
    return ResNetFPN(**SMALL).to(device)


def images_on(device: str, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 64, 64, generator=generator).to(device)


def train(
    model: nn.Module, images: torch.Tensor, dtype: Any = None, steps: int = 2
) -> list[float]:
    """Losses of some steps, with a scaler where the dtype needs one."""
    kind = images.device.type
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler(kind, enabled=dtype is torch.float16, init_scale=64.0)
    losses = []
    for _ in range(steps):
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            loss = loss_of(model(images))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing, f'no gradient: {missing[:3]}'
    assert all(value == value for value in losses), losses
    return losses


def wrapped(device: str, model: Any = None, **options: Any) -> nn.Module:
    model = network(device) if model is None else model
    images = images_on(device, 1)
    options = {'total_epochs': 12, **options}
    return QuantTrainModule(model, images, **options).train()


def plain(device: str) -> dict:
    return dict(losses=train(wrapped(device), images_on(device)))


def half(dtype: torch.dtype) -> Callable:
    def run(device: str) -> dict:
        full = train(wrapped(device), images_on(device), steps=4)
        found = train(wrapped(device), images_on(device), dtype, steps=4)
        assert abs(found[-1] - full[-1]) < 0.1 * abs(full[-1]), (found, full)
        return dict(losses=found, fp32=full)

    return run


def channels_last(device: str) -> dict:
    images = images_on(device).contiguous(memory_format=torch.channels_last)
    model = network(device).to(memory_format=torch.channels_last)
    found = train(wrapped(device, model), images)
    expected = train(wrapped(device), images_on(device))
    assert abs(found[-1] - expected[-1]) < 0.05 * abs(expected[-1]), (found, expected)
    return dict(losses=found, contiguous=expected)


def benchmark(device: str) -> dict:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        model = wrapped(device)
        losses = train(model, images_on(device))
        return dict(losses=losses, **tested(model, device))
    finally:
        torch.backends.cudnn.benchmark = before


def tested(model: nn.Module, device: str) -> dict:
    """Whether the checkpoint tests the same on a CPU, bit for bit."""
    images = images_on(device)
    model.eval()
    state = {key: value.cpu() for key, value in model.module.state_dict().items()}
    with torch.no_grad():
        found = [level.cpu() for level in model(images)]
        other = QuantTestModule(network('cpu')).eval()
        other.module.load_state_dict(state)
        expected = other(images.cpu())
    differ = sum(int((x != y).sum()) for x, y in zip(found, expected))
    assert not differ, f'{differ} elements of the outputs differ from a CPU'
    return dict(equal_to_cpu=True)


def frozen(device: str) -> dict:
    model = wrapped(device, target='onnxruntime')
    images = images_on(device)
    losses = train(model, images)
    model.set_epoch(10, 12)
    model.train()
    losses += train(model, images)
    return dict(losses=losses, **tested(model, device))


def learned(device: str) -> dict:
    model = wrapped(device, target='onnxruntime', learned_scale=True)
    losses = train(model, images_on(device), torch.bfloat16, steps=4)
    return dict(losses=losses, **tested(model, device))


def averaged(device: str) -> dict:
    model = wrapped(device)
    images = images_on(device)
    train(model, images, steps=1)
    ema = ExponentialMovingAverage(model.module, momentum=0.5, update_buffers=True)
    losses = []
    for _ in range(2):
        losses += train(model, images, steps=1)
        ema.update_parameters(model.module)
    ema.module.quantization.set_phase('test')
    ema.module.eval()
    with torch.no_grad():
        outputs = ema.module(images)
    assert all(level.isfinite().all() for level in outputs)
    return dict(losses=losses)


def join(backend: str, rank: int, size: int, path: str) -> None:
    dist.init_process_group(
        backend,
        store=dist.FileStore(path, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )


def distributed(device: str) -> dict:
    """Under DDP, as the only process of its group."""
    backend = 'nccl' if device == 'cuda' else 'gloo'
    with tempfile.TemporaryDirectory() as folder:
        join(backend, 0, 1, f'{folder}/store')
        try:
            ids = [0] if device == 'cuda' else None
            options = dict(device_ids=ids, broadcast_buffers=False)
            model = wrapped(device, distributed=options)
            found = train(model, images_on(device), torch.bfloat16)
            return dict(losses=found, **tested(model, device))
        finally:
            dist.destroy_process_group()


def _one_of_two(rank: int, device: str, folder: str) -> None:
    join('gloo', rank, 2, f'{folder}/store')
    ids = [0] if device == 'cuda' else None
    options = dict(device_ids=ids, broadcast_buffers=False)
    model = wrapped(device, distributed=options)
    images = images_on(device)[2 * rank : 2 * rank + 2]
    losses = train(model, images, steps=3)
    ranges = model.quantization.activations
    state = torch.stack([ranges.low, ranges.high]).cpu()
    torch.save(dict(losses=losses, ranges=state), f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def two_processes(device: str) -> dict:
    """Two processes on one device; their collectives go through the host."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_of_two, (device, folder), nprocs=2)
        first, second = (torch.load(f'{folder}/{rank}.pt') for rank in range(2))
    assert torch.equal(first['ranges'], second['ranges'])
    return dict(losses=first['losses'])


def copies(device: str) -> dict:
    """A deep copy and a state dict compute the same."""
    model = wrapped(device)
    train(model, images_on(device))
    again = copy.deepcopy(model).eval()
    model.eval()
    images = images_on(device)
    with torch.no_grad():
        pairs = zip(model(images), again(images))
    assert all(torch.equal(x, y) for x, y in pairs)
    return {}


WAYS: dict[str, Callable[[str], dict]] = dict(
    plain=plain,
    fp16_grad_scaler=half(torch.float16),
    bf16=half(torch.bfloat16),
    channels_last=channels_last,
    cudnn_benchmark=benchmark,
    frozen=frozen,
    learned_scales=learned,
    ema=averaged,
    deepcopy=copies,
    ddp=distributed,
    ddp_two_processes=two_processes,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--json', type=Path, required=True)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', '0')
    report = {}
    for name, run in WAYS.items():
        try:
            report[name] = dict(passed=True, **run(args.device))
        except Exception as error:  # noqa: BLE001 - it is in the report
            lines = traceback.format_exc().strip().splitlines()[-8:]
            message = f'{type(error).__name__}: {error}'[:500]
            report[name] = dict(passed=False, error=message)
            print('\n'.join(lines))
        print(name, report[name], flush=True)
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

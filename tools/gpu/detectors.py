"""Detectors of MMDetection on a GPU: times of whole steps, and who waits for it."""

import argparse
import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))

from step_time import train_step  # noqa: E402
from timed_networks import build, random_batch  # noqa: E402

from mmquant_jacinto import MMDetQuantTrainModule  # noqa: E402

MODELS = ('mobilenet', 'resnet')


def times(args: argparse.Namespace, size: tuple[int, int], *options: str) -> Any:
    """What ``benchmarks/step_time.py`` measures."""
    target = args.json.with_suffix('.part.json')
    target.unlink(missing_ok=True)
    batch, side = size
    command = [sys.executable, str(ROOT / 'benchmarks/step_time.py')]
    command += ['--device', args.device, '--json', str(target), *options]
    command += ['--batch', str(batch), '--size', str(side), '--rounds', '5']
    code = subprocess.run([*command, '--models', *MODELS], check=False).returncode
    return json.loads(target.read_text()) if code == 0 else f'ended with {code}'


def waits(args: argparse.Namespace) -> dict[str, int]:
    """How often a step makes the host wait, in float and in QAT."""
    batch = random_batch(2, 128)
    model = build('mobilenet').to(args.device)
    qat = MMDetQuantTrainModule(
        copy.deepcopy(model), dummy_input=batch, total_epochs=12
    )
    found = {}
    for name, trained in (('float', model), ('qat', qat)):
        step = train_step(trained.train(), batch, amp=False)
        for _ in range(3):
            step()
        torch.cuda.set_sync_debug_mode('warn')
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            step()
        torch.cuda.set_sync_debug_mode('default')
        found[name] = sum('synchronizing' in str(item.message) for item in caught)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--json', type=Path, required=True)
    args = parser.parse_args()
    report: dict[str, Any] = {}
    large = (16, 512) if args.device == 'cuda' else (2, 64)
    parts = dict(
        waits=lambda: waits(args) if args.device == 'cuda' else None,
        fp32=lambda: times(args, large),
        fp16=lambda: times(args, large, '--amp'),
    )
    for name, run in parts.items():
        try:
            report[name] = run()
        except Exception as error:  # noqa: BLE001 - it is in the report
            report[name] = f'{type(error).__name__}: {error}'[:500]
        print(name, report[name], flush=True)
        args.json.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()

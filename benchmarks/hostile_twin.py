"""Write the hostile twin of a float checkpoint: same function, channels rescaled.

python benchmarks/hostile_twin.py CONFIG float.pth twin.pth

The case for mmquant_jacinto/quantizers/equalize.py: per-tensor formats collapse on it.
"""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint

from mmquant_jacinto.config.quantize_config import QuantizeConfig
from mmquant_jacinto.quantizers.equalize import hostile_twin
from mmquant_jacinto.runners.calibration_batches import first_batch
from mmquant_jacinto.wrappers.prepare import plan_model, probe_passes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file of the float model')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('twin', type=Path, help='the checkpoint to write')
    parser.add_argument(
        '--octaves', type=int, default=4, help='scales are up to 2**OCTAVES, default 4'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the scales')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model)
    load_checkpoint(model, args.checkpoint, map_location='cpu')
    model.eval()
    loader = Runner.build_dataloader(
        {**cfg.val_dataloader, 'num_workers': 0, 'persistent_workers': False}
    )
    batch = first_batch(loader, 'val_dataloader')
    config = QuantizeConfig(mode='ptq', target='onnxruntime', equalize=True)
    plan = plan_model(model, probe_passes(model, batch), config)
    generator = torch.Generator().manual_seed(args.seed)
    twin = hostile_twin(model, plan, args.octaves, generator)
    args.twin.parent.mkdir(parents=True, exist_ok=True)
    # Its name says that it is whole.
    part = args.twin.with_suffix('.part')
    torch.save({'meta': {}, 'state_dict': twin.state_dict()}, part)
    os.replace(part, args.twin)
    print(f'Channels rescaled between the layers of {len(plan.pairs)} pairs.')


if __name__ == '__main__':
    main()

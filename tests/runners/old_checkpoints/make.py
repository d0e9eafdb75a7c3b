"""Makes checkpoints of each kind, and what they predict, for a later version to load.

    PYTHONPATH=tests/helpers python tests/runners/old_checkpoints/make.py FOLDER [KIND]

``test_old_checkpoints.py`` tests those in this folder bit for bit. They were written by
the last version whose modules lay in one flat folder, and are not to be made again:
only a new kind of checkpoint is.
"""

import sys
import tempfile
from pathlib import Path

import torch
from mmengine.runner import Runner
from old_checkpoints import KINDS, config_of, scores_of
from toy_distiller import distilling_model
from toy_runner import EPOCHS, make_config

import mmquant_jacinto  # noqa: F401 - its hook makes the Runner quantize

FEW_EPOCHS = 2


def make(kind, folder, float_checkpoint):
    """Trains or calibrates, and keeps the checkpoint with its predictions."""
    cfg = config_of(kind, folder / kind)
    cfg.train_cfg.max_epochs = FEW_EPOCHS
    cfg.load_from = float_checkpoint
    if kind == 'distilled':
        cfg.model = distilling_model(cfg.load_from)
    Runner.from_cfg(cfg).train()
    last = sorted((folder / kind).glob('epoch_*.pth'))[-1]
    cfg = config_of(kind, folder / kind)
    cfg.load_from = str(last)
    runner = Runner.from_cfg(cfg)
    runner.test()
    checkpoint = torch.load(last, map_location='cpu', weights_only=False)
    checkpoint['expected_scores'] = scores_of(runner.model)
    return checkpoint


def train_float(folder, model):
    """A float checkpoint to start from."""
    cfg = make_config(folder / model)
    cfg.custom_imports.imports.append('toy_distiller')
    cfg.model = dict(type=model)
    Runner.from_cfg(cfg).train()
    return str(folder / model / f'epoch_{EPOCHS}.pth')


def main():
    torch.set_num_threads(1)
    target = Path(sys.argv[1]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for kind in sys.argv[2:] or KINDS:
            start = train_float(folder, config_of(kind, folder).model.type)
            torch.save(make(kind, folder, start), target / f'{kind}.pth')


if __name__ == '__main__':
    main()

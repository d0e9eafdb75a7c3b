"""Calibrations through the Runner."""

from toy_runner import PTQ, make_config

CHECKPOINT = 'epoch_1.pth'


def ptq_config(work_dir, checkpoint, quantize=PTQ, **changes):
    return make_config(work_dir, quantize, load_from=str(checkpoint), **changes)

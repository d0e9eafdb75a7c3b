"""Calibrations through the Runner."""

from toy_runner import PTQ, make_config

CHECKPOINT = 'epoch_1.pth'
# So few bits that there is something to keep within a budget.
NARROW = dict(
    mode='ptq',
    bits=dict(weight=2, activation=4, sum=4, output=4),
    edge_bits=2,
    report=False,
)


def ptq_config(work_dir, checkpoint, quantize=PTQ, **changes):
    return make_config(work_dir, quantize, load_from=str(checkpoint), **changes)

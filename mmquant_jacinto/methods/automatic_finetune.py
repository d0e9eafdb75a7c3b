"""Automatic fine-tuning: where a calibration alone loses much, and bits are few.

The float model is the reference, so a calibration knows how far its outputs are from
where they were. With 8 bits and more that is for the user to act on; with fewer it goes
on with ``quantize.finetune`` by itself.
"""

from __future__ import annotations

import logging
import math

from mmengine.logging import print_log

from ..plan.plan import Plan

# Widths from here on do not fine-tune unless they are told to: hundreds of iterations
# take fifty times as long as the calibration, for what is often nothing.
ENOUGH_BITS = 8
# Squared error of the outputs over their square, mean over outputs: 15 dB.
BOUND = 10**-1.5
# Batches that it is measured on, where none are held out.
MEASURED = 8


def has_few_bits(plan: Plan) -> bool:
    """Whether any grid has, or may yet get, fewer than :data:`ENOUGH_BITS`."""
    narrow = any(spec.format.bits < ENOUGH_BITS for spec in plan.specs)
    return narrow or bool(plan.undecided)


def decibels(error: float) -> float:
    """A relative squared error as signal over noise."""
    return -10 * math.log10(error) if error > 0 else math.inf


def decide(plan: Plan, error: float | None, batches: int) -> bool:
    """Whether a calibrated model is to be fine-tuned, and says why in the log.

    Args:
        plan (Plan): Of the model.
        error (float, optional): Of its outputs, see
            :class:`~mmquant_jacinto.methods.output_error.OutputError`, the same in all
            processes. None: no output can be compared.
        batches (int): That it was measured on.

    Returns:
        bool: The same in all processes.
    """
    if error is None or not math.isfinite(error):
        told = 'can be compared' if error is None else 'is finite'
        print_log(
            f'Fine-tuning: no output of the network {told}, quantized and in float; '
            'it is left as it is calibrated.',
            'current',
        )
        return False
    found = (
        f'Fine-tuning: on {batches} batches the outputs are {decibels(error):.1f} dB '
        f'from float (error {error:.5f})'
    )
    bound = f'{decibels(BOUND):g} dB'
    if error <= BOUND:
        print_log(f'{found}, no less than {bound}: none.', 'current')
        return False
    if not has_few_bits(plan):
        print_log(
            f'{found}, less than {bound}. quantize.finetune=True trains weights, '
            'biases and scales for them, without labels; with '
            f'{ENOUGH_BITS} bits and more only where it is asked for.',
            'current',
            logging.WARNING,
        )
        return False
    print_log(
        f'{found}, less than {bound}, and there are fewer than {ENOUGH_BITS} bits: '
        'weights, biases and scales are trained for them, without labels. '
        'quantize.finetune=False leaves the network as it is now.',
        'current',
    )
    return True

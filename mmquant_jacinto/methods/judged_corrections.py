"""Judged corrections: taken back where images that they did not see lose by them.

A bias that is moved to the mean of few images is right for those. Some are kept to
judge by: nothing is corrected by them, and where the outputs on them are no nearer to
float with the corrections than without, there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import torch
from mmengine.logging import print_log

from ..execute.behaviour import Behaviour
from ..execute.state import State
from .output_error import OutputError

# Of so many batches one is not learned from, but judges; no more than that many do.
JUDGED, MOST_JUDGES = 8, 8


def judges(count: int) -> int:
    """How many of so many batches, the first, judge what the others teach."""
    return min(count // JUDGED, MOST_JUDGES)


class Judgement(NamedTuple):
    """What images that took no part say of the corrections.

    Args:
        is_kept (bool): Whether there are any now.
        error (float, optional): Of the outputs as the model is now; None where nothing
            can be compared.
    """

    is_kept: bool
    error: float | None


@torch.no_grad()
def keep_if_nearer(
    state: State, run: Callable[[Behaviour, Any], None], batches: Sequence[Any]
) -> Judgement:
    """Keeps the corrections of biases and weights, or takes all of them back.

    Args:
        state (State): Of the quantized model, with ranges and corrections.
        run (Callable): Runs the model with a behaviour on a batch; with the float
            weights, where the behaviour is the teacher.
        batches (Sequence): Of which nothing was corrected by; equally many in each
            process, which all decide alike.

    Returns:
        Judgement: Kept they are, too, where no output can be compared.
    """
    corrections = state.bias_correction, state.weight_correction
    known = [correction.clone() for correction in corrections]
    judged = list(enumerate(batches))
    error = OutputError(state, run)
    corrected = error.mean(judged)
    state.bias_correction.zero_()
    state.weight_correction.fill_(1.0)
    state.note_weight_correction()
    error.renew_student()
    plain = error.mean(judged)
    if corrected is None or plain is None:
        is_nearer, said = True, 'nothing that leaves the network can be compared'
    else:
        is_nearer = corrected < plain
        said = (
            f'on {len(judged)} batches that they did not see the error of the outputs '
            f'is {corrected:.5f} with them, {plain:.5f} without'
        )
    if is_nearer:
        for correction, value in zip(corrections, known):
            correction.copy_(value)
        state.note_weight_correction()
        print_log(f'Corrections: {said}.', 'current')
    else:
        print_log(f'Corrections: {said}: there are none.', 'current', logging.WARNING)
    return Judgement(is_nearer, corrected if is_nearer else plain)

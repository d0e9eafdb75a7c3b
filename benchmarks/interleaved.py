"""Times of variants that run one after the other, round after round.

A noisy machine disturbs the variants of a round alike, so the result is the median
over rounds of the ratio within a round.
"""

import statistics
import time
from typing import Any, Callable

import torch

WARM_UP = 2  # rounds


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a run takes; of one that returns several, their mean."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if isinstance(result, list) and result and isinstance(result[0], float):
        return statistics.mean(result)
    return time.perf_counter() - start


def interleave(
    variants: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each variant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + WARM_UP):
        for name, run in variants.items():
            elapsed = timed(run)
            if index >= WARM_UP:
                seconds[name].append(elapsed)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Medians: seconds of the base, and of the ratios to it."""
    result = {f'{base}_seconds': statistics.median(seconds[base])}
    for name, values in seconds.items():
        if name != base:
            result[name] = statistics.median(
                value / unit for value, unit in zip(values, seconds[base])
            )
    return result

"""A budget of bits, spent where it does most good: a multiple-choice knapsack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Parts that the budget is divided into; more cost memory, a byte each per layer.
PARTS = 2**16


def spend(
    costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """Chooses one candidate per item, with the least total error within a budget.

    Dynamic programming over the budget in equal parts. Where what can be spent
    above the cheapest choices is at most ``PARTS`` times the costs' greatest
    common divisor, the result is an optimum. Otherwise costs are rounded up to
    whole parts: the budget is kept, and no choice that costs less than the
    budget by one part per item, or more, has a smaller error.

    Args:
        costs (Sequence[Sequence[int]]): By item and candidate, ascending.
        errors (Sequence[Sequence[float]]): Finite, of the same shape.
        budget (int): Upper bound of the total cost; at least that of all
            cheapest candidates.

    Returns:
        List[int]: Index of the candidate that each item gets.
    """
    extra = [[cost - row[0] for cost in row] for row in costs]
    room = budget - sum(row[0] for row in costs)
    if room < 0:
        raise ValueError(f'a budget of {budget} is below the least cost')
    # More room than all could use would only make the parts larger.
    room = min(room, sum(row[-1] for row in extra))
    divisor = math.gcd(*(cost for row in extra for cost in row)) or 1
    part = max(divisor, -(-room // PARTS))
    picks = _optimum(
        [[-(-cost // part) for cost in row] for row in extra], errors, room // part
    )
    return _spend_rest(extra, errors, room, picks)


def _optimum(
    costs: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], room: int
) -> list[int]:
    least = np.zeros(room + 1)  # total error of the items so far, by what they may cost
    tables = []
    for row, values in zip(costs, errors):
        options = np.full((len(row), room + 1), np.inf)
        for option, cost, value in zip(options, row, values):
            if cost <= room:
                option[cost:] = least[: room + 1 - cost] + value
        # The first of equals: the cheapest.
        table = options.argmin(0).astype(np.uint8)
        least = options[table, np.arange(room + 1)]
        tables.append(table)
    picks = []
    for table, row in zip(reversed(tables), reversed(costs)):
        picks.append(int(table[room]))
        room -= row[picks[-1]]
    return picks[::-1]


def _spend_rest(
    costs: Sequence[Sequence[int]],
    errors: Sequence[Sequence[float]],
    room: int,
    picks: list[int],
) -> list[int]:
    """Spends what rounding has left, on the largest gains that fit."""
    picks = list(picks)
    room -= sum(row[pick] for row, pick in zip(costs, picks))
    while True:
        upgrades = [
            (values[pick] - value, item, index)
            for item, (row, values, pick) in enumerate(zip(costs, errors, picks))
            for index, (cost, value) in enumerate(zip(row, values))
            if value < values[pick] and cost - row[pick] <= room
        ]
        if not upgrades:
            return picks
        _, item, index = max(upgrades)
        room -= costs[item][index] - costs[item][picks[item]]
        picks[item] = index

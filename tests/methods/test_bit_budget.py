"""The knapsack against trying everything."""

import itertools

import numpy as np
import pytest

from mmquant_jacinto.methods.budgets import bit_budget
from mmquant_jacinto.methods.budgets.bit_budget import spend

WIDTHS = (2, 4, 8, 16)


def problem(seed, items=6, unit=1):
    """Costs and errors as of layers of a network: errors fall by about 4 per bit."""
    rng = np.random.default_rng(seed)
    elements = rng.integers(1, 40, items) * unit
    costs = [[int(size * width) for width in WIDTHS] for size in elements]
    scales = 10 ** rng.uniform(-3, 1, items)
    errors = [
        [float(scale * 4.0**-width * rng.uniform(0.5, 2)) for width in WIDTHS]
        for scale in scales
    ]
    return costs, errors


def brute_force(costs, errors, budget):
    """The least total error of all choices within the budget."""
    return min(
        sum(values)
        for price, values in zip(itertools.product(*costs), itertools.product(*errors))
        if sum(price) <= budget
    )


def total(rows, picks):
    return sum(row[pick] for row, pick in zip(rows, picks))


@pytest.mark.parametrize('share', [0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('seed', range(4))
def test_choice_is_the_best_of_all(seed, share):
    costs, errors = problem(seed)
    low, high = (sum(row[end] for row in costs) for end in (0, -1))
    budget = low + int(share * (high - low))
    picks = spend(costs, errors, budget)
    assert total(costs, picks) <= budget
    assert total(errors, picks) == pytest.approx(
        brute_force(costs, errors, budget), rel=1e-12
    )


@pytest.mark.parametrize('seed', range(8))
def test_in_coarse_parts_it_keeps_the_budget_and_what_it_promises(seed, monkeypatch):
    monkeypatch.setattr(bit_budget, 'PARTS', 50)
    costs, errors = problem(seed, unit=7)
    low, high = (sum(row[end] for row in costs) for end in (0, -1))
    budget = (low + high) // 3
    picks = spend(costs, errors, budget)
    assert total(costs, picks) <= budget
    smaller = budget - len(costs) * -(-(budget - low) // 50)
    assert total(errors, picks) <= brute_force(costs, errors, smaller)


def test_with_all_that_it_could_use_everything_is_the_best(monkeypatch):
    monkeypatch.setattr(bit_budget, 'PARTS', 50)
    costs, errors = problem(0)
    everything = sum(row[-1] for row in costs)
    for budget in (everything, 10 * everything):
        assert spend(costs, errors, budget) == [len(WIDTHS) - 1] * len(costs)


def test_of_equally_good_candidates_the_cheapest_is_taken():
    assert spend([[4, 8, 16], [4, 8, 16]], [[0.0] * 3, [1.0, 0.5, 0.5]], 100) == [0, 1]


def test_a_larger_width_that_is_worse_is_not_bought():
    assert spend([[4, 8], [4, 8]], [[0.1, 0.2], [1.0, 0.5]], 100) == [0, 1]


def test_a_budget_below_the_cheapest_is_an_error():
    with pytest.raises(ValueError, match='below the least'):
        spend([[4, 8], [4, 8]], [[1.0, 0.5]] * 2, 7)


def test_large_networks_take_no_time():
    rng = np.random.default_rng(0)
    elements = rng.integers(100, 3_000_000, 300)
    costs = [[int(size * width) for width in WIDTHS] for size in elements]
    errors = rng.uniform(0, 1, (300, 1)) * 4.0 ** -np.array(WIDTHS)
    budget = int(5 * elements.sum())
    picks = spend(costs, errors.tolist(), budget)
    assert 0.9999 * budget < total(costs, picks) <= budget

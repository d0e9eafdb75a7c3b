"""The search of the fewest layers that keep a score."""

import math
import random

import pytest

from mmquant_jacinto.methods.budgets.accuracy_budget import (
    AccuracyBudget,
    Candidate,
    Choice,
    kinds_of,
    raise_to,
    raised_value,
    sizes,
)


class Network:
    """A score that each layer takes something of, unless it is raised.

    Args:
        costs (Dict[str, float]): By layer, at the lowest width.
        at_16 (float): Share of that at 16 bits.
    """

    def __init__(self, costs, at_16=0.0, remedy=0.0):
        self.costs, self.at_16, self.remedy = costs, at_16, remedy
        self.scored = []

    def score(self, choice):
        self.scored.append(choice)
        left = {None: 1.0, 16: self.at_16, False: 0.0}
        lost = sum(
            cost * left[choice.layers.get(name)] for name, cost in self.costs.items()
        )
        return 100 - lost + (self.remedy if choice.remedies else 0.0)

    def rank(self, choice, level):
        found = [
            Candidate(name, level, cost)
            for name, cost in self.costs.items()
            if choice.layers.get(name) != level
        ]
        return sorted(found, key=lambda item: -item.gain)


def search(network, least, limit=1000, remedies=(), levels=(16, False), rank=None):
    budget = AccuracyBudget(network.score, rank or network.rank, least, limit)
    return budget.search(remedies, levels)


def test_nothing_is_raised_where_nothing_is_lost():
    network = Network({'a': 0.1, 'b': 0.2})
    assert search(network, 99.0) == Choice()
    assert len(network.scored) == 1


def test_what_costs_no_speed_comes_first():
    network = Network({'a': 3.0, 'b': 1.0}, remedy=3.5)
    remedy = dict(bias_correction='analytic')
    assert search(network, 99.0, remedies=[remedy]) == Choice({}, remedy)
    assert len(network.scored) == 2


def test_a_remedy_that_helps_stays_and_one_that_hardly_does_goes():
    remedy = dict(bias_correction='analytic')
    for gain, kept in ((1.0, remedy), (0.01, {})):
        network = Network({'a': 3.0, 'b': 1.0}, remedy=gain)
        assert search(network, 99.0, remedies=[remedy]).remedies == kept


@pytest.mark.parametrize('seed', range(5))
def test_nearly_the_fewest_of_a_right_ranking_are_found_with_few_scorings(seed):
    rng = random.Random(seed)
    costs = {f'layer{index}': rng.expovariate(1.0) for index in range(200)}
    least, network = 100 - 0.3 * sum(costs.values()), Network(costs)
    order = sorted(costs.values(), reverse=True)
    needed = next(n for n in range(201) if sum(order[n:]) <= 100 - least)
    found = search(network, least, limit=24)
    assert network.score(found) >= least
    assert needed <= len(found.layers) <= 1.125 * needed
    assert len(network.scored) <= 25


def test_what_a_wrong_ranking_raised_for_nothing_is_put_back():
    costs = {f'layer{index}': 0.0 for index in range(12)}
    costs.update(layer3=2.0, layer9=2.0)
    network = Network(costs)
    names = sorted(costs, key=lambda name: int(name[5:]))

    def rank(choice, level):
        return [Candidate(name, level, 12.0 - n) for n, name in enumerate(names)]

    found = search(network, 99.0, rank=rank)
    assert set(found.layers) == {'layer3', 'layer9'}


def test_what_makes_much_of_the_noise_is_not_put_back_by_a_lucky_score():
    # Nothing but the last of them is needed, the first three are most of the noise, and
    # too many are left that each make little for chance to be tried with each.
    costs = {f'layer{index}': 40.0 - 13 * index for index in range(3)}
    costs.update({f'layer{index}': 1.0 - index / 100 for index in range(3, 24)})
    needed = {f'layer{index}' for index in range(12, 24)}

    class Lucky(Network):
        def score(self, choice):
            super().score(choice)
            return 100.0 if needed <= set(choice.layers) else 90.0

    found = search(Lucky(costs), 99.0)
    assert 'layer0' in found.layers and needed <= set(found.layers)
    assert not {f'layer{index}' for index in range(4, 12)} & set(found.layers)


def test_each_of_a_few_is_tried_without():
    # The ranking has them the wrong way round.
    network = Network({'a': 0.5, 'b': 4.0})
    network.rank = lambda choice, level: [
        Candidate(name, level, gain) for name, gain in (('a', 5.0), ('b', 4.0))
    ]
    assert search(network, 99.0).layers == {'b': 16}


def test_one_that_does_as_well_as_two_is_found_by_itself():
    # The two that the ranking has first do together, and neither alone.
    worth = {'a': 1.0, 'b': 1.0, 'c': 0.1, 'd': 2.0, 'e': 0.1}

    class Layers(Network):
        def score(self, choice):
            super().score(choice)
            return 98.0 + sum(worth[name] for name in choice.layers)

    network = Layers(dict(a=5.0, b=4.0, c=0.3, d=0.2, e=0.1))
    found = search(network, 100.0)
    assert found.layers == {'d': 16}
    # Two for the start, which one of them makes twice, and those of the ranking.
    assert len(network.scored) <= 2 + 3 + 4


def test_those_that_bring_most_alone_may_be_fewer_together():
    worth = dict(a=0.1, b=1.0, c=0.1, d=1.4, e=0.7, f=1.3)

    class Layers(Network):
        def score(self, choice):
            super().score(choice)
            return 97.0 + sum(worth[name] for name in choice.layers)

    network = Layers(dict(a=9.0, b=8.0, c=7.0, d=0.9, e=0.8, f=0.7))
    found = search(network, 99.6)
    assert found.layers == {'d': 16, 'f': 16}


class Noisy(Network):
    """A network whose score says little of what is raised.

    Args:
        start (float): With nothing raised.
        scores (Dict[str, float]): By what is raised, its names joined.
    """

    def __init__(self, start, scores):
        super().__init__(
            {name: 1 / 2**place for place, name in enumerate('abcdefghij')}
        )
        self.scores = {'': start, **scores}

    def score(self, choice):
        super().score(choice)
        return self.scores.get(''.join(sorted(choice.layers)), 98.0)


def test_where_chance_decides_the_first_are_tried_by_themselves():
    prefixes = dict(a=98.6, ab=98.7, abcd=98.1)
    alone = Noisy(98.2, dict(prefixes, f=99.0))
    assert search(alone, 99.0, levels=(False,)).layers == {'f': False}
    tried = [''.join(sorted(choice.layers)) for choice in alone.scored]
    assert tried == ['', 'a', 'ab', 'abcd', 'b', 'c', 'd', 'e', 'f']
    together = Noisy(98.2, dict(prefixes, f=98.9, d=98.8, df=99.3))
    assert set(search(together, 99.0, levels=(False,)).layers) == {'d', 'f'}


def test_chance_does_not_make_up_for_much():
    # As much worse with more raised, and three times as far from the budget.
    scores = dict(a=98.6, ab=98.7, abcd=98.1, abcdefgh=99.1)
    network = Noisy(97.4, scores)
    search(network, 99.0, levels=(False,), limit=5)
    tried = [''.join(sorted(choice.layers)) for choice in network.scored]
    assert tried == ['', 'a', 'ab', 'abcd', 'abcdefgh']


def test_float_is_the_last_resort_and_as_few_as_do():
    network = Network({'a': 9.0, 'b': 6.0, 'c': 0.5}, at_16=0.2)
    found = search(network, 98.0)
    # 16 bits leave 3.1 of 15.5; with a in float 1.3, and c may go back to its width.
    assert found.layers == {'a': False, 'b': 16}


def test_without_a_wider_width_layers_go_to_float():
    network = Network({'a': 9.0, 'b': 1.0})
    assert search(network, 98.0, levels=(False,)).layers == {'a': False}


def test_what_cannot_be_kept_ends_in_the_best_that_was_seen():
    network = Network({'a': 9.0, 'b': 6.0}, at_16=0.5)
    found = search(network, 99.0, levels=(16,))
    assert found.layers == {'a': 16, 'b': 16}
    assert network.score(found) < 99.0


def test_a_limit_ends_the_search_with_what_keeps_the_score():
    costs = {f'layer{index}': 1.0 for index in range(64)}
    for limit in range(1, 12):
        network = Network(costs)
        found = search(network, 70.0, limit=limit)
        assert len(network.scored) == limit
        scores = [Network(costs).score(choice) for choice in network.scored]
        final = Network(costs).score(found)
        assert final >= 70.0 or final == max(scores) < 70.0


def test_the_same_search_takes_the_same_steps():
    costs = {f'layer{index}': math.sin(index) ** 2 for index in range(40)}
    runs = [Network(costs) for _ in range(2)]
    for network in runs:
        search(network, 95.0)
    first, second = ([choice.key for choice in network.scored] for network in runs)
    assert first == second and len(set(first)) == len(first)


def test_sizes_begin_with_half_of_the_gain_and_double():
    ranking = [Candidate(str(n), 16, gain) for n, gain in enumerate((8, 1, 0.6, 0.4))]
    assert sizes(ranking) == [1, 2, 4]
    even = [Candidate(str(n), 16, 1.0) for n in range(10)]
    assert sizes(even) == [5, 10]
    assert sizes([]) == []


@pytest.mark.parametrize(
    'known, value, merged',
    [
        (None, {'weight': 16}, {'weight': 16}),
        (8, {'weight': 16}, {'weight': 16, 'activation': 8}),
        ({'activation': 8}, {'weight': 16}, {'activation': 8, 'weight': 16}),
        ({'activation': 8}, {'activation': 16}, {'activation': 16}),
        ({'weight': 8}, 16, 16),
        (16, False, False),
    ],
)
def test_what_is_raised_for_the_second_time_loses_nothing(known, value, merged):
    base = Choice({} if known is None else {'a': known})
    assert raise_to(base, [Candidate('a', value, 1.0)]).layers == {'a': merged}


@pytest.mark.parametrize(
    'kinds, value',
    [
        (('weight', 'activation'), 16),
        (('activation',), {'activation': 16}),
        (('weight',), {'weight': 16}),
    ],
)
def test_a_layer_is_raised_as_a_whole(kinds, value):
    assert raised_value(16, kinds) == value


class Kinds(Network):
    """Layers whose weights and activations cost apart: (weight, activation)."""

    def score(self, choice):
        self.scored.append(choice)
        lost = 0.0
        for name, costs in self.costs.items():
            raised = kinds_of(choice.layers.get(name, {}))
            parts = zip(('weight', 'activation'), costs)
            lost += sum(cost for kind, cost in parts if kind not in raised)
        return 100 - lost

    def rank(self, choice, level):
        found = [
            Candidate(name, level, w + a, dict(weight=w, activation=a))
            for name, (w, a) in self.costs.items()
        ]
        return sorted(found, key=lambda item: -item.gain)


def test_kinds_that_hardly_add_to_the_noise_are_put_back():
    network = Kinds({'a': (0.1, 5.0), 'b': (3.0, 0.2), 'c': (1.0, 1.0), 'd': (0.3, 0)})
    found = search(network, 99.0)
    assert found.layers == {'a': {'activation': 16}, 'b': {'weight': 16}, 'c': 16}


def test_kinds_without_which_the_score_falls_stay():
    network = Kinds({'a': (0.6, 5.0), 'b': (3.0, 0.1), 'c': (1.0, 1.0)})
    found = search(network, 99.7)
    assert found.layers == {'a': 16, 'b': {'weight': 16}, 'c': 16}
    # Nothing short of all at 16 bits does: that is what the level is tried with.
    assert search(network, 100.0).layers == {'a': 16, 'b': 16, 'c': 16}


def test_what_an_earlier_width_has_raised_is_put_back_no_further():
    network = Kinds({'a': (0.1, 5.0)})
    budget = AccuracyBudget(network.score, network.rank, 99.0, 9)
    base = Choice({'a': 8})
    found = raise_to(base, network.rank(base, 16))
    budget._narrow(found, base, network.rank(base, 16))
    assert budget.choices[-1].layers == {'a': {'weight': 8, 'activation': 16}}

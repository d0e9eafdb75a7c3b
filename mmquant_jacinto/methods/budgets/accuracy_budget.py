"""An accuracy budget: the fewest layers at more bits that keep a score.

Scoring a network takes as long as validating it, so that few are scored. First what
costs no speed; then layers in the order of the noise that they put into the network's
outputs (:mod:`~mmquant_jacinto.report.measuring.sensitivity`): more and more of them
until the score holds, by bisection the fewest of that order, and then what can be
spared of these all the same, in halves as delta debugging does (Zeller and Hildebrandt,
TSE 2002). A layer is raised as a whole; at the end, what hardly adds to its noise, its
weight or its activations, is put back the same way. Where few are left, the first of
the ranking are scored by themselves, and fewer of those that score best may do; so,
too, as soon as more that are raised score so much worse than fewer that chance may make
up for what is missing. Accuracy-aware control that ranks all layers so (NNCF) scores as
often as it has layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Of the noise that raising all would take away, what raising the first few does.
FIRST_SHARE = 0.5
# Of a layer's noise, from which on its weight or its activations alone may do.
ONE_KIND = 0.8
# Of what is missing, that a remedy has to make up for; less may be chance.
HELPS = 0.25
KINDS = ('weight', 'activation')
# Parts of what is raised, by which bisection tells more from fewer.
STEPS = 8
# Of the noise that what is raised would make, that is never put back at once, but for
# one of so few that each makes as much.
MUCH = 0.25
# Of what is missing with nothing raised, by which more that are raised score worse than
# fewer where chance decides as much as the ranking.
CHANCE = 0.5
# Layers raised that are few, and of a ranking that are then scored by themselves.
FEW = 8


@dataclass(frozen=True)
class Choice:
    """A network that may be calibrated and scored.

    Args:
        layers (Mapping[str, Any]): Call site to what it is raised to: a width, a dict
            of widths by kind, or False for float.
        remedies (Mapping[str, Any]): Settings that cost no speed.
    """

    layers: Mapping[str, Any] = field(default_factory=dict)
    remedies: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """str: The same for the same choice."""
        return json.dumps([dict(self.layers), dict(self.remedies)], sort_keys=True)

    @property
    def in_float(self) -> int:
        """int: Layers that are in float."""
        return sum(value is False for value in self.layers.values())

    @property
    def cost(self) -> tuple[int, int, int]:
        """Tuple[int, int, int]: Layers in float; layers raised, those included; and
        kinds of tensors raised.
        """
        kinds = (kinds_of(value) for value in self.layers.values())
        return self.in_float, len(self.layers), sum(map(len, kinds))

    def with_layers(self, layers: Mapping[str, Any]) -> Choice:
        """This choice with other layers."""
        return Choice(dict(layers), self.remedies)

    def __str__(self) -> str:
        raised = len(self.layers) - self.in_float
        text = f'{raised} layer{"" if raised == 1 else "s"} raised'
        text += f', {self.in_float} in float' if self.in_float else ''
        given = ', '.join(f'{key}={value!r}' for key, value in self.remedies.items())
        return f'{text}, {given}' if given else text


@dataclass(frozen=True)
class Candidate:
    """A layer that may be raised.

    Args:
        name (str): Call site.
        value (Any): To what.
        gain (float): Noise to signal in the outputs that this takes away.
        kinds (Mapping[str, float]): The same by kind, where it has both.
    """

    name: str
    value: Any
    gain: float
    kinds: Mapping[str, float] = field(default_factory=dict)

    @property
    def major(self) -> str | None:
        """str, optional: The kind that has nearly all of it."""
        return next(
            (k for k, v in self.kinds.items() if v >= ONE_KIND * self.gain), None
        )


class Spent(Exception):
    """As many networks were scored as may be."""


class AccuracyBudget:
    """Searches the choice that keeps a score and raises least.

    Args:
        score (Callable): Calibrates and scores a choice; more is better.
        rank (Callable): Takes a choice and a level (a width, or False for float), and
            gives its candidates, worst first.
        least (float): The score to keep.
        limit (int): Choices that are scored at most.
    """

    def __init__(
        self,
        score: Callable[[Choice], float],
        rank: Callable[[Choice, Any], Sequence[Candidate]],
        least: float,
        limit: int,
    ) -> None:
        self._score, self._rank = score, rank
        self.least, self.limit = least, limit
        self.scores: dict[str, float] = {}
        self.choices: list[Choice] = []

    def search(
        self, remedies: Iterable[Mapping[str, Any]], levels: Iterable[Any]
    ) -> Choice:
        """Finds it.

        Args:
            remedies (Iterable[Mapping]): Each tried by itself, nothing raised.
            levels (Iterable): To raise to, one after the other: where all layers at
                one do not do, they stay there and some go on to the next.

        Returns:
            Choice: With the least raised of those that keep the score; where none
            does, the one with the best score.
        """
        try:
            self._search(remedies, levels)
        except Spent:
            pass
        kept = [choice for choice in self.choices if self._reaches(choice)]
        if kept:
            return min(kept, key=lambda c: (c.cost, -self.scores[c.key]))
        return max(self.choices, key=lambda choice: self.scores[choice.key])

    def _search(
        self, remedies: Iterable[Mapping[str, Any]], levels: Iterable[Any]
    ) -> None:
        base = Choice()
        if self.keeps(base):
            return
        for remedy in remedies:
            tried = Choice({}, remedy)
            if self.keeps(tried):
                return
            if self._helps(tried, base):
                base = tried
        bottom = base
        for level in levels:
            ranking = self._rank(base, level)
            found = self._fewest(base, ranking)
            if found is not None:
                gains = {item.name: item.gain for item in reversed(ranking)}
                found = self._spare(found, base, gains)
                found = self._fewer(found, base, ranking)
                # What an earlier level has raised as a whole.
                found = self._spare(found, bottom, dict.fromkeys(base.layers, 0.0))
                self._narrow(found, base, ranking)
                return
            base = raise_to(base, ranking)

    def _helps(self, tried: Choice, base: Choice) -> bool:
        """Whether a remedy makes up for more than chance would."""
        before, after = self.scores[base.key], self.scores[tried.key]
        return after - before > HELPS * (self.least - before)

    def keeps(self, choice: Choice) -> bool:
        """Whether a choice keeps the score; it is scored if it has not been.

        Raises:
            Spent: If there is no scoring left.
        """
        if choice.key not in self.scores:
            if len(self.scores) >= self.limit:
                raise Spent
            self.scores[choice.key] = self._score(choice)
            self.choices.append(choice)
        return self._reaches(choice)

    def _reaches(self, choice: Choice) -> bool:
        return self.scores[choice.key] >= self.least

    def _fewest(self, base: Choice, ranking: Sequence[Candidate]) -> Choice | None:
        """The fewest of a ranking that do, if all of it does."""
        low, high, best, by_chance = 0, None, -math.inf, False
        for size in sizes(ranking):
            tried = raise_to(base, ranking[:size])
            if self.keeps(tried):
                high = size
                break
            low, score = size, self.scores[tried.key]
            fall, missing = best - score, self.least - self.scores[base.key]
            if fall > CHANCE * missing and not by_chance:
                by_chance = True
                found = self._by_themselves(base, ranking, size)
                if found is not None:
                    return found
            best = max(best, score)
        if high is None:
            return None
        # Finer steps than these are chance; what can be spared is found below.
        while high - low > max(1, high // STEPS):
            middle = (low + high) // 2
            if self.keeps(raise_to(base, ranking[:middle])):
                high = middle
            else:
                low = middle
        return raise_to(base, ranking[:high])

    def _spare(
        self, found: Choice, floor: Choice, gains: Mapping[str, float]
    ) -> Choice:
        """Puts layers back to where ``floor`` has them, as long as the score holds.

        But for parts that make much of the noise: that a score of few images holds
        without them is chance. Of a few that are raised each makes much, and is tried.
        """
        names = [
            name
            for name in gains
            if name in found.layers and found.layers[name] != floor.layers.get(name)
        ]
        most = MUCH * sum(gains[name] for name in names)
        few = len(names) <= 1 / MUCH
        size = max(1, len(names) // 2)
        while names:
            for start in range(0, len(names), size):
                part = names[start : start + size]
                is_one_of_few = few and len(part) == 1
                if sum(gains[name] for name in part) > most and not is_one_of_few:
                    continue
                tried = put_back(found, floor, part)
                if tried.key != found.key and self.keeps(tried):
                    found = tried
            if size == 1:
                break
            names = [n for n in names if found.layers.get(n) != floor.layers.get(n)]
            size //= 2
        return found

    def _narrow(
        self, found: Choice, base: Choice, ranking: Sequence[Candidate]
    ) -> None:
        """Puts back kinds of tensors that hardly add to the noise of their layers."""
        layers, gains = dict(found.layers), {}
        for item in reversed(ranking):
            major = item.major
            if major is not None and layers.get(item.name) == item.value:
                alone = {major: item.value}
                layers[item.name] = merge(base.layers.get(item.name), alone)
                gains[item.name] = item.gain - item.kinds[major]
        floor = found.with_layers(layers)
        if not self.keeps(floor):
            self._spare(found, floor, gains)

    def _fewer(
        self, found: Choice, base: Choice, ranking: Sequence[Candidate]
    ) -> Choice:
        """Fewer than are left, of the first of a ranking, by what each brings alone.

        A ranking by noise has those near its top in no sure order, and removing what
        was raised never finds another layer that does as well as two.
        """
        left = sum(base.layers.get(name) != found.layers[name] for name in found.layers)
        if not 1 < left <= FEW:
            return found
        return self._by_themselves(base, ranking, left) or found

    def _by_themselves(
        self, base: Choice, ranking: Sequence[Candidate], most: int
    ) -> Choice | None:
        """One of the first of a ranking that does, or several that bring most alone.

        Args:
            base (Choice): What they are raised in.
            ranking (Sequence[Candidate]): Worst first.
            most (int): Fewer than so many.
        """
        first = ranking[:FEW]
        for item in first:
            alone = raise_to(base, [item])
            if self.keeps(alone):
                return alone
        # The ranking decides between equals: sorting keeps its order.
        scores = [self.scores[raise_to(base, [item]).key] for item in first]
        order = sorted(range(len(first)), key=lambda place: -scores[place])
        for size in range(2, min(most, FEW)):
            fewer = raise_to(base, [first[place] for place in order[:size]])
            if self.keeps(fewer):
                return fewer
        return None


def sizes(ranking: Sequence[Candidate]) -> list[int]:
    """How many of a ranking to try: what makes a share of its gain, then doubled."""
    whole, total, found = sum(item.gain for item in ranking), 0.0, []
    for count, item in enumerate(ranking, 1):
        total += item.gain
        if count == len(ranking):
            found.append(count)
        elif total >= FIRST_SHARE * whole and (not found or count == 2 * found[-1]):
            found.append(count)
    return found


def raise_to(base: Choice, candidates: Iterable[Candidate]) -> Choice:
    """A choice with further layers raised."""
    raised = {
        item.name: merge(base.layers.get(item.name), item.value) for item in candidates
    }
    return base.with_layers({**base.layers, **raised})


def merge(known: Any, value: Any) -> Any:
    """What a layer is raised to that is raised already: of each kind the later."""
    if not isinstance(value, Mapping) or known is None:
        return value
    if not isinstance(known, Mapping):
        known = dict.fromkeys(KINDS, known)
    return {**known, **value}


def put_back(choice: Choice, floor: Choice, names: Iterable[str]) -> Choice:
    """A choice with some layers as another one has them."""
    layers = dict(choice.layers)
    for name in names:
        if name in floor.layers:
            layers[name] = floor.layers[name]
        else:
            layers.pop(name, None)
    return choice.with_layers(layers)


def kinds_of(value: Any) -> tuple[str, ...]:
    """Kinds of tensors that a layer has at more bits.

    Args:
        value (Any): What it is raised to.
    """
    if isinstance(value, Mapping):
        return tuple(value)
    return () if value is False else KINDS


def raised_value(width: int, kinds: Iterable[str]) -> Any:
    """What a layer is raised to as a whole.

    Args:
        width (int): The width.
        kinds (Iterable[str]): Of its tensors, that gain by it: ``'weight'``,
            ``'activation'`` or both.
    """
    found = dict.fromkeys(kinds, width)
    return width if found.keys() == set(KINDS) else found

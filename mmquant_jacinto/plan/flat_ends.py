"""Flat ends: where what reads a tensor makes nothing of how large it is.

Far enough below zero ``silu`` is zero, and far from it on either side ``sigmoid`` is 0
or 1. A grid in front of them needs no steps there: half of what a convolution in front
of SiLU gives, as a rule.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Set

from ..record import ops
from ..record.graph import Site
from .fusion import Dataflow
from .plan import Clip

# Of one operand: what it is times this is another function.
PRODUCTS = {'sigmoid': 'silu', 'hardsigmoid': 'hardswish'}


def flat_ends(function: str, bits: int) -> Clip | None:
    """Beyond which numbers a function is flat, to half a step of a grid behind it.

    Args:
        function (str): Canonical name.
        bits (int): Width of the grid in front of it.

    Returns:
        Clip, optional: None where it is flat nowhere.
    """
    # exp(-x) is half a step of a grid from 0 to 1 there.
    end = math.log(2) * (bits + 1)
    ends: dict[str, Clip] = dict(
        sigmoid=(-end, end),
        tanh=(-end / 2 - 0.5, end / 2 + 0.5),
        silu=(-end, None),
        mish=(-end, None),
        gelu=(-math.sqrt(2 * end), None),
        hardsigmoid=(-3.0, 3.0),
        hardswish=(-3.0, None),
    )
    return ends.get(function)


class FlatEnds:
    """What reads each group of values that share a quantizer.

    Args:
        flow (Dataflow): Of the recorded graph.
        opened (Set[int]): Values that are made and read as one, see
            :func:`~.open_results.open_results`.
    """

    def __init__(self, flow: Dataflow, opened: Set[int] = frozenset()) -> None:
        self._flow = flow
        self._raw = flow.raw - opened
        self._readers: dict[int, list[Site]] = defaultdict(list)
        self._leaving = {flow.groups.find(value) for value in flow.leaving}
        values = {v for site in flow.graph.sites.values() for v in site.outputs}
        self._sizes = Counter(flow.groups.find(value) for value in values)
        for value, readers in flow.consumers.items():
            self._readers[flow.groups.find(value)] += [
                site for site in readers if site.kind not in (ops.PASS, ops.CAT)
            ]
        self._is_hidden = bool(flow.graph.hidden)

    def of(self, group: int, bits: int) -> Clip | None:
        """Beyond which numbers all that reads a group is flat."""
        readers = self._readers.get(group, [])
        if group in self._leaving or self._is_hidden or not readers:
            return None
        if self._sizes[group] != 1:
            # Of a part a deformable convolution may make positions.
            return None
        # Behind a logarithm even the ends are not flat.
        if any(self._raw.intersection(site.outputs) for site in readers):
            return None
        functions = self._functions(readers)
        ends = [flat_ends(name, bits) for name in functions]
        found = [clip for clip in ends if clip is not None]
        if len(found) < len(ends):
            return None
        lows, highs = zip(*found)
        low = None if None in lows else min(lows)
        high = None if None in highs else max(highs)
        return None if low is None and high is None else (low, high)

    def _functions(self, readers: list[Site]) -> list[str]:
        """Canonical names; of ``x * sigmoid(x)`` that of both together."""
        names = []
        gates = {
            value: site
            for site in readers
            for value in site.outputs
            if site.op in PRODUCTS
        }
        products = {}
        for site in readers:
            opened = [value for value in site.inputs if value in gates]
            if site.op == 'mul' and len(opened) == 1 and len(site.inputs) == 2:
                products[gates[opened[0]].name] = site.name
        for site in readers:
            if site.name in products:
                names.append(PRODUCTS[site.op])
            elif site.name not in products.values():
                names.append(site.op.strip('_'))
        return names

"""Dataflow: what of a plan follows from the recorded graph alone.

Which calls compute on activations, which are one operation of the target, which
tensors are the same to a quantizer, and which no quantized operation makes.
"""

from dataclasses import dataclass, field, replace
from typing import Optional

from ..record import ops
from ..record.graph import Graph, Site
from .plan import Clip


class Groups:
    """Union-find over values: the tensors that must share one scale."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def find(self, value: int) -> int:
        root = value
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        self.parent[value] = root
        return root

    def join(self, first: int, second: int) -> None:
        a, b = sorted((self.find(first), self.find(second)))
        self.parent[b] = a


@dataclass
class Chain:
    """Sites that a target computes as one operation.

    Args:
        head (Site): A layer, an addition, ...
        followers (List[Site]): A normalization, a clamping activation.
    """

    head: Site
    followers: list[Site] = field(default_factory=list)

    @property
    def sites(self) -> list[Site]:
        return [self.head] + self.followers

    @property
    def tail(self) -> Site:
        return self.sites[-1]

    @property
    def norm(self) -> Optional[str]:
        return next(
            (site.module for site in self.followers if site.kind == ops.NORM), None
        )

    @property
    def clip(self) -> Optional[Clip]:
        return self.tail.clip


class Dataflow:
    """What is known of a graph before any setting.

    Args:
        graph (Graph): What was recorded.

    Attributes:
        active (List[Site]): Sites that compute on activations, and layers.
        chains (Dict[str, Chain]): By the name of their head.
        groups (Groups): The values that share a quantizer.
        leaving (Set[int]): Values that a region returns, alone or as parts of others.
        raw (Set[int]): Values that no quantized operation makes. Where a layer
            reads one, it is quantized there.
        splines (Set[str]): Names of the sites that compute where a sampling reads, by
            products with constants.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.consumers = graph.consumers()
        self.groups = Groups()
        self.chains: dict[str, Chain] = {}
        self.raw: set[int] = set()
        self.leaving = set(graph.region_outputs)
        self.active = self._active_sites()
        self.steep = self._steep()
        self._fuse()
        # Others may read them too: what passes them on is as raw as they are.
        self.raw |= self.steep.intersection(
            value for chain in self.chains.values() for value in chain.tail.outputs
        )
        self._join()
        # Inside a chain, or for no grid.
        self.raw |= {
            value
            for chain in self.chains.values()
            for site in chain.sites[:-1]
            for value in site.outputs
        }
        self.raw |= self._statistics() | self._precise()
        self.splines = self._splines()

    def _active_sites(self) -> list[Site]:
        """Sites that compute on activations, and layers, whatever they get.

        What follows from constants alone is a constant too, and becomes None
        among the inputs.
        """
        live = set(self.graph.region_inputs) | self.graph.hidden
        self.raw |= self.graph.hidden
        active = []
        for site in self.graph.sites.values():
            inputs = [value if value in live else None for value in site.inputs]
            site = replace(site, inputs=inputs)
            if all(value is None for value in inputs) and (
                site.kind not in ops.WEIGHTED
            ):
                continue
            live.update(site.outputs)
            if site.kind == ops.OTHER:
                self.raw.update(site.outputs)
                continue
            if site.computed_weight and site.weight_value in live:
                # Two activations, in effect.
                site = replace(
                    site, kind=ops.COMPUTE, inputs=[*inputs, site.weight_value]
                )
            active.append(site)
        return active

    def _join(self) -> None:
        """Finds the values that share a quantizer."""
        computed_on = self._computed_on()
        for site in self.active:
            if site.kind == ops.PASS:
                source = site.inputs[0]
                assert source is not None
                for value in site.outputs:
                    self.groups.join(value, source)
                    if source in self.raw:
                        self.raw.add(value)
            elif site.kind == ops.CAT and computed_on.isdisjoint(site.outputs):
                # Nobody computes on it: its parts keep grids of their own.
                self.raw.update(site.outputs)
                self.leaving.update(v for v in site.inputs if v is not None)
            elif site.kind == ops.CAT:
                made = [
                    value
                    for value in site.inputs
                    if value is not None and value not in self.raw
                ]
                for value in site.outputs + made:
                    self.groups.join(value, site.outputs[0])
                if not made:
                    self.raw.update(site.outputs)

    def _computed_on(self) -> set[int]:
        """Values that something reads, at once or behind what moves elements."""
        moved: dict[int, set[int]] = {}
        found: set[int] = set()
        for value, readers in self.consumers.items():
            for site in readers:
                if site.kind not in (ops.PASS, ops.CAT):
                    found.add(value)
                for output in site.outputs:
                    moved.setdefault(output, set()).add(value)
        # Not by recursion: hundreds may follow each other, and one may be in a circle.
        waiting = list(found)
        while waiting:
            new = moved.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    def _fuse(self) -> None:
        taken: set[str] = set()
        for site in self.active:
            if site.name in taken or site.kind in (ops.PASS, ops.CAT):
                continue
            chain = self.chains[site.name] = Chain(site)
            while True:
                follower = self._fusible(chain)
                if follower is None:
                    break
                chain.followers.append(follower)
                taken.add(follower.name)

    def _fusible(self, chain: Chain) -> Optional[Site]:
        tail = chain.tail
        if (
            len(tail.outputs) != 1
            or tail.outputs[0] in self.graph.region_outputs
            or tail.kind == ops.CLIP
        ):
            return None
        readers = self.consumers.get(tail.outputs[0], [])
        if len(readers) != 1 or len(readers[0].inputs) != 1:
            return None
        reader = readers[0]
        if reader.kind == ops.NORM:
            fits = chain.head.kind in ops.WEIGHTED and not chain.followers
            return reader if fits else None
        if reader.kind != ops.CLIP or self.steep.intersection(reader.outputs):
            # A bound that keeps what is divided by from zero is no step of a grid.
            return None
        read = {reader.inputs[0], *reader.further_inputs}
        # Where its number comes again, it may clamp what nobody has clamped.
        return reader if read == {tail.outputs[0]} else None

    def _statistics(self) -> set[int]:
        """Values that follow from powers and roots alone; they stay in float."""
        found: set[int] = set()
        for site in self.active:
            inputs = [value for value in site.inputs if value is not None]
            if site.op in ops.STATISTICS or (
                site.kind not in ops.WEIGHTED
                and all(value in found for value in inputs)
            ):
                found.update(site.outputs)
        return found

    def _precise(self) -> set[int]:
        """Values that only a softmax, a logarithm or a division by them reads.

        They stay in float, back to the layers that they come from.
        """
        found: set[int] = set()
        for site in reversed(self.graph.sites.values()):
            for value in site.outputs:
                readers = self.consumers.get(value, [])
                if (
                    readers
                    and value not in self.graph.region_outputs
                    and all(_reads_precisely(item, value, found) for item in readers)
                ):
                    found.add(value)
        return {
            value
            for chain in self.chains.values()
            if chain.head.op in ops.ELEMENTWISE
            for value in chain.tail.outputs
            if value in found
        }

    def _splines(self) -> set[str]:
        """Sites that multiply constants to find where a sampling reads.

        What a thin-plate spline multiplies is large and cancels out: no grid is fine
        enough. With the products go what is computed from them, and what they are
        computed from, back to the layers. Positions without such products, those of a
        deformable attention say, have grids like all else.
        """
        places = {value for site in self.active for value in site.places}
        found: set[int] = set()
        leading = []
        for site in reversed(self.active):
            if site.kind not in ops.WEIGHTED and all(
                self._only_leads_to(places, found, value) for value in site.outputs
            ):
                found.update(site.outputs)
                leading.append(site)
        connected = Groups()
        for site in leading:
            for value in found.intersection(site.inputs).union(site.outputs):
                connected.join(value, site.outputs[0])
        splines = {
            connected.find(site.outputs[0])
            for site in leading
            if site.kind == ops.MATMUL and None in site.inputs
        }
        return {s.name for s in leading if connected.find(s.outputs[0]) in splines}

    def _only_leads_to(self, places: set[int], found: set[int], value: int) -> bool:
        """Whether a value serves nothing but to say where a sampling reads."""
        readers = self.consumers.get(value, [])
        return (
            value not in self.graph.region_outputs
            and (value in places or bool(readers))
            and all(found.issuperset(reader.outputs) for reader in readers)
        )

    def _steep(self) -> set[int]:
        """Values that a logarithm, a root or a division by them reads.

        They stay in float, and so does what serves nothing else on the way there: on
        a grid a small one would become zero, and so would a sum of many. Layers and
        products of activations are quantized, unless they are read so themselves.
        """
        found: set[int] = set()
        for site in reversed(self.graph.sites.values()):
            for value in site.outputs:
                readers = self.consumers.get(value, [])
                leading = [
                    (_passes_on(item) and found.issuperset(item.outputs))
                    or _is_ratio(item)
                    for item in readers
                ]
                leads = any(leading) if site.op in ops.POSITIVE else all(leading)
                leads = leads and bool(readers)
                is_layer = site.kind in (*ops.WEIGHTED, ops.MATMUL, ops.NORM)
                if (leads and not is_layer) or any(
                    _is_steep(item, value) for item in readers
                ):
                    found.add(value)
        return found


def _is_steep(reader: Site, value: int) -> bool:
    """Whether a value near zero makes much of a difference to a call's result."""
    op = reader.op.strip('_')
    if op in ('rdiv', 'rfloordiv', 'rmod'):
        return reader.inputs[0] == value
    if op in ops.DIVISIONS:
        return value in reader.inputs[1:]
    return op in ops.STEEP


def _is_ratio(reader: Site) -> bool:
    """Whether small numbers, divided by small ones, are none."""
    operands = [value for value in reader.inputs if value is not None]
    return reader.op in ops.DIVISIONS and len(operands) > 1


def _passes_on(reader: Site) -> bool:
    """Whether a call gives elements, or means or sums, of what it reads."""
    is_elementwise = reader.kind in (ops.PASS, ops.CLIP, ops.ADD, ops.AVERAGE)
    return is_elementwise or reader.op in (*ops.ELEMENTWISE, 'sum')


def _reads_precisely(reader: Site, value: int, found: set[int]) -> bool:
    passes_on = reader.kind == ops.PASS or reader.op in ops.ELEMENTWISE
    return (
        reader.op in ops.PRECISE
        or _is_steep(reader, value)
        or (passes_on and found.issuperset(reader.outputs))
    )

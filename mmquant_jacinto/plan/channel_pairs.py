"""Channel pairs: consecutive layers whose channels may be rescaled between them.

What the first layer divides a channel by, the second multiplies it with, and
nothing in between notices: the float function stays the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from ..record import ops
from ..record.graph import Site
from .fusion import Dataflow

# Of each channel alone, and f(s x) = s f(x) for all s > 0.
ANYWHERE = frozenset(
    ('leaky_relu', 'dropout', 'clone', 'contiguous', 'detach', 'alias', 'float', 'to')
)
# The same where the axes behind the channels are those of space.
SPATIAL = frozenset(
    f'{name}_pool{d}d'
    for name in ('max', 'avg', 'adaptive_max', 'adaptive_avg')
    for d in (1, 2, 3)
) | {'interpolate', 'upsample', 'dropout2d'}
RESHAPES = frozenset(('flatten', 'view', 'reshape', 'squeeze'))
CONVOLUTIONS = (ops.CONV, ops.CONV_TRANSPOSE)

Shapes = Mapping[str, tuple[int, ...]]


def find_pairs(flow: Dataflow, shapes: Shapes) -> list[tuple[Site, Site]]:
    """Finds the layers whose channels can be rescaled between them.

    A depthwise layer is the second of one pair and the first of the next. ReLU6
    and other activations with an upper bound part a pair: they are not
    equivariant where the bound is reached.

    Args:
        flow (Dataflow): Of the recorded graph.
        shapes (Mapping[str, tuple]): Shape of each parameter, by name.

    Returns:
        List[Tuple[Site, Site]]: A call of the first layer and one of the second,
        for each pair of weights.
    """
    # What is not seen may read anything.
    return [] if flow.graph.hidden else _Finder(flow, shapes).find()


class _Finder:
    def __init__(self, flow: Dataflow, shapes: Shapes) -> None:
        self.flow = flow
        self.shapes = shapes
        self.sites = list(flow.graph.sites.values())
        self.users: dict[str, list[Site]] = defaultdict(list)
        for site in self.sites:
            for name in (site.weight, site.bias):
                if name is not None:
                    self.users[name].append(site)
        self.dynamic_weights = {site.weight_value for site in self.sites}

    def find(self) -> list[tuple[Site, Site]]:
        readers = {site.name: self._reader(site) for site in self.sites if site.weight}
        pairs = []
        for name, users in self.users.items():
            first = users[0]
            second = readers[first.name] if first.weight == name else None
            if second is None or second.weight in (None, name):
                continue
            # All calls of the one lead to all calls of the other: heads are
            # shared over levels.
            reached = {
                reader.name
                for reader in (readers[site.name] for site in users)
                if reader is not None
            }
            if (
                all(readers[site.name] is not None for site in users)
                and reached == {site.name for site in self.users[second.weight]}
                and self._is_scalable(users)
                and self._has_matching_channels(first, second)
            ):
                pairs.append((first, second))
        return pairs

    def _is_scalable(self, users: list[Site]) -> bool:
        """Whether the outputs of a layer can be divided, and nothing else is."""
        chains = [self.flow.chains.get(site.name) for site in users]
        if any(
            chain is None or site.rows or site.computed_weight
            for chain, site in zip(chains, users)
        ):
            return False
        norms = {chain.norm for chain in chains if chain is not None}
        biases = {site.bias for site in users}
        if len(norms) > 1 or len(biases) > 1:
            return False
        (norm,), (bias,) = norms, biases
        affine = [f'{norm}.weight', f'{norm}.bias']
        scaled = [users[0].weight, bias] if norm is None else affine
        if self.flow.graph.read_elsewhere.intersection(scaled):
            return False
        if norm is None:
            return bias is None or len(self.users[bias]) == len(users)
        calls = [s for s in self.sites if s.kind == ops.NORM and s.module == norm]
        return len(calls) == len(users) and self.shapes.keys() >= set(affine)

    def _has_matching_channels(self, first: Site, second: Site) -> bool:
        if second.rows or second.weight in self.flow.graph.read_elsewhere:
            return False
        assert first.weight is not None and second.weight is not None
        weight = self.shapes[first.weight]
        channels = first.shape[-1 if first.kind == ops.LINEAR else 1 - len(weight)]
        further = self.shapes[second.weight]
        if second.kind == ops.CONV_TRANSPOSE:
            return further[0] == channels
        if second.kind == ops.LINEAR:
            return len(further) == 2 and further[1] == channels
        return channels % further[1] == 0 and further[0] % (channels // further[1]) == 0

    def _reader(self, layer: Site) -> Site | None:
        """The layer that alone reads what a layer makes; None where it may not."""
        if layer.kind not in (*CONVOLUTIONS, ops.LINEAR):
            return None
        chain = self.flow.chains.get(layer.name)
        norms = [s.name for s in chain.followers] if chain is not None else []
        site, spatial = layer, layer.kind in CONVOLUTIONS
        while True:
            reader = self._only_reader(site)
            if reader is None:
                return None
            if reader.kind in (*CONVOLUTIONS, ops.LINEAR):
                fits = spatial == (reader.kind in CONVOLUTIONS)
                return reader if fits and reader.weight is not None else None
            if reader.kind == ops.NORM:
                if reader.name not in norms:
                    return None
            elif spatial and _removes_space(site, reader):
                spatial = False
            elif not _is_equivariant(reader, spatial):
                return None
            site = reader

    def _only_reader(self, site: Site) -> Site | None:
        value = site.outputs[0]
        readers = self.flow.consumers.get(value, [])
        if (
            len(site.outputs) != 1
            or len(readers) != 1
            or value in self.flow.graph.region_outputs
            or value in self.dynamic_weights
            or readers[0].inputs != [value]
            or readers[0].further_inputs
        ):
            return None
        return readers[0]


def _is_equivariant(site: Site, spatial: bool) -> bool:
    if site.kind == ops.CLIP:
        return site.clip == (0.0, None)
    return site.op in ANYWHERE or (spatial and site.op in SPATIAL)


def _removes_space(before: Site, site: Site) -> bool:
    """Whether a call makes (N, C) of (N, C, 1, 1)."""
    return (
        site.op in RESHAPES
        and len(before.shape) > 2
        and math.prod(before.shape[2:]) == 1
        and site.shape == before.shape[:2]
    )

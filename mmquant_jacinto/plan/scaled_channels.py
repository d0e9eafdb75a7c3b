"""Scaled channels: tensors whose channels may have scales of their own.

An engine has one scale for a tensor. Where a convolution makes the tensor and
convolutions alone read it, each channel may be divided by a factor of its own all the
same: the one takes it into its output channels, the others into their input channels.
That is what cross-layer equalization (Nagel et al., arXiv 1906.04721) does with
weights, and SmoothQuant (Xiao et al., arXiv 2211.10438) with what linear layers read.
A clamp in between keeps its bounds where channels are only enlarged. Nothing goes
through a smooth activation: what is in front of it and what is behind have factors of
their own, and it is a function of real numbers between them. What other calls make, and
a function that is one with a convolution (:mod:`~.open_results`), is divided as it is
quantized, if the engine takes that into its quantization.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set

from ..record import ops
from ..record.graph import Site
from .flat_ends import PRODUCTS
from .fusion import Chain, Dataflow
from .plan import ScaledChannels

# What keeps each channel by itself, and zero where it is.
MOVES = frozenset(('pad', 'interpolate', 'upsample', 'contiguous', 'clone')) | {
    f'{name}{d}d' for name in ('max_pool', 'adaptive_max_pool') for d in (1, 2, 3)
}


def _keeps_channels(site: Site, maker: Site) -> bool:
    return (
        site.op in MOVES
        and len(site.outputs) == 1
        and len(site.shape) == len(maker.shape)
        and site.shape[1] == maker.shape[1]
    )


class _Finder:
    def __init__(
        self,
        flow: Dataflow,
        weight_name: Callable[[Chain], str],
        quantizer: Callable[[int], str | None],
        opened: Set[int],
        divides: bool,
    ) -> None:
        self.flow = flow
        self.weight_name = weight_name
        self.quantizer = quantizer
        self.opened, self.divides = opened, divides
        self.fixed = flow.leaving | (flow.raw - opened)
        sites = flow.graph.sites.values()
        self.calls = Counter(
            name for site in sites for name in (site.weight, site.bias) if name
        )
        values = {v for site in sites for v in (*site.inputs, *site.outputs)}
        self.sharing = Counter(
            flow.groups.find(value) for value in values if value is not None
        )

    def find(self) -> Iterator[ScaledChannels]:
        known: set[str] = set()
        for chain in self.flow.chains.values():
            is_made = self._is_own(chain.head)
            for found in self._made(chain) if is_made else self._divided(chain):
                if found.quantizer not in known:
                    known.add(found.quantizer)
                    yield found

    def _made(self, chain: Chain) -> Iterator[ScaledChannels]:
        """What a convolution makes, and a smooth activation of it."""
        made = chain.tail.outputs[0]
        readers = self._readers(chain.tail)
        if self._are_convolutions(readers):
            yield from self._group(made, chain.head, chain, readers)
            return
        direct = [site for site, value in readers if value == made]
        if chain.clip is not None or len(direct) < len(readers):
            return
        last = self._function(direct, made)
        if last is None:
            return
        yield from self._group(made, chain.head, chain, [])
        readers = self._readers(last)
        divides = self.divides or made not in self.opened
        if divides and self._are_convolutions(readers):
            yield from self._group(last.outputs[0], chain.head, None, readers)

    def _divided(self, chain: Chain) -> Iterator[ScaledChannels]:
        """What no layer makes, if quantizing it may divide it."""
        head, readers = chain.head, self._readers(chain.tail)
        makes_numbers = head.kind in (ops.ADD, ops.COMPUTE) and len(head.shape) > 2
        if not (self.divides and makes_numbers and chain.clip is None):
            return
        if self._are_convolutions(readers):
            yield from self._group(chain.tail.outputs[0], head, None, readers)

    def _group(
        self,
        value: int,
        shaped_like: Site,
        producer: Chain | None,
        readers: list[tuple[Site, int]],
    ) -> Iterator[ScaledChannels]:
        name = self.quantizer(value)
        chains = [self.flow.chains.get(reader.name) for reader, _ in readers]
        if name is None or None in chains:
            return
        clip = None if producer is None else producer.clip
        shape = shaped_like.shape
        yield ScaledChannels(
            name,
            None if producer is None else self.weight_name(producer),
            tuple(self.weight_name(item) for item in chains if item),
            shape[1],
            len(shape) - 2,
            clip is not None and clip[1] is not None,
        )

    def _is_own(self, site: Site) -> bool:
        """Whether a site is the only call of a convolution with a parameter."""
        names = [name for name in (site.weight, site.bias) if name]
        return (
            site.kind == ops.CONV
            and site.weight is not None
            and site.rows is None
            and not site.further_inputs
            and len(site.shape) > 2
            and all(self.calls[name] == 1 for name in names)
        )

    def _readers(self, site: Site) -> list[tuple[Site, int]]:
        """Who reads what a site makes, and by which value, past what moves elements.

        Nobody where it cannot be changed.
        """
        values, readers = list(site.outputs), []
        if len(values) != 1:
            return []
        for value in values:
            for reader in self.flow.consumers.get(value, []):
                if reader.kind == ops.PASS and _keeps_channels(reader, site):
                    values += reader.outputs
                else:
                    readers.append((reader, value))
        shared = self.sharing[self.flow.groups.find(values[0])]
        is_fixed = self.fixed.intersection(values) or shared != len(values)
        return [] if is_fixed else readers

    def _are_convolutions(self, readers: list[tuple[Site, int]]) -> bool:
        return bool(readers) and all(
            self._is_own(site) and site.inputs == [value] for site, value in readers
        )

    def _function(self, readers: list[Site], value: int) -> Site | None:
        """The last call of a smooth activation of a value that none else reads."""
        chains = [self.flow.chains.get(site.name) for site in readers]
        if any(chain is None or chain.followers for chain in chains):
            return None
        if len(readers) == 1:
            (site,) = readers
            fits = site.op in PRODUCTS.values() and site.inputs == [value]
            return site if fits and not site.further_inputs else None
        gates = [site for site in readers if site.op in PRODUCTS]
        products = [site for site in readers if site.op == 'mul']
        if len(readers) != 2 or len(gates) != 1 or len(products) != 1:
            return None
        (gate,), (product,) = gates, products
        opened = gate.outputs[0]
        fits = (
            gate.inputs == [value]
            and sorted(product.inputs, key=str) == sorted([value, opened], key=str)
            and self._readers(gate) == [(product, opened)]
            and not (gate.further_inputs or product.further_inputs)
        )
        return product if fits else None


def find_scaled_channels(
    flow: Dataflow,
    weight_name: Callable[[Chain], str],
    quantizer: Callable[[int], str | None],
    opened: Set[int] = frozenset(),
    divides: bool = False,
) -> tuple[ScaledChannels, ...]:
    """Finds the tensors whose channels may be rescaled.

    Args:
        flow (Dataflow): Of the recorded graph.
        weight_name (Callable): Chain of a layer to the name of its weight quantizer.
        quantizer (Callable): Value to the name of its quantizer; None without one.
        opened (Set[int]): Values without one that are made and read as one, see
            :func:`~.open_results.open_results`.
        divides (bool): Whether the engine takes a division of channels into the
            quantization behind it.

    Returns:
        Tuple[ScaledChannels]: In order of execution.
    """
    # What is not seen may read anything.
    if flow.graph.hidden:
        return ()
    return tuple(_Finder(flow, weight_name, quantizer, opened, divides).find())

"""Activation specs: the part of a plan that says which tensors are quantized.

Tensors that share a scale are a group with one quantizer. A layer may read a tensor
that has none, or one that is wider than what it multiplies: an entry quantizes that
where it is read.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from ..config.quantize_config import QuantizeConfig
from ..record import ops
from ..record.graph import Site
from ..targets.formats import TensorFormat
from ..targets.rules import table
from ..targets.rules.table import Rules
from .file_operators import operator_of, symmetric_groups
from .flat_ends import FlatEnds
from .fusion import Chain, Dataflow
from .open_results import gives_reals
from .overrides import Overrides
from .plan import ACTIVATION, INPUT, OUTPUT, SUM, ActivationSpec, narrow_name


def input_name(call: str, leaf: int) -> str:
    """Name of the quantizer of an argument of a region's call."""
    return f'{call}/input' + (f'#{leaf}' if leaf else '')


def _signs(rules: Rules, operator: str) -> bool:
    """Whether weights of an operator are signed integers."""
    row = rules.row(table.Weights, operator)
    return row is not None and 'uint8' not in row.types


class ActivationSpecs:
    """The activation quantizers of a recorded graph, in order of first use.

    Args:
        flow (Dataflow): What is known of the graph.
        config (QuantizeConfig): The widths asked for.
        overrides (Overrides): Those of single modules.
        rules (Rules): Of the target.
        opened (Mapping[int, str]): See :func:`~.open_results.open_results`.
    """

    def __init__(
        self,
        flow: Dataflow,
        config: QuantizeConfig,
        overrides: Overrides,
        rules: Rules,
        opened: Mapping[int, str],
    ) -> None:
        self.flow, self.groups = flow, flow.groups
        self.config = config
        self.overrides = overrides
        self._opened = opened.keys()
        # Site to the chains that are one with it.
        self._parts: dict[str, list[Chain]] = defaultdict(list)
        for chain in flow.chains.values():
            for value in opened.keys() & set(chain.tail.outputs):
                self._parts[opened[value]].append(chain)
        self._read = self._read_groups()
        self._leaving = {self.groups.find(v) for v in flow.leaving}
        self._floats = {
            self.groups.find(value)
            for chain in flow.chains.values()
            if overrides.is_off(chain.head)
            for value in chain.head.inputs
            if value is not None
        }
        self._sums = self._sum_groups()
        quantized = [c for c in flow.chains.values() if not overrides.is_off(c.head)]
        self._symmetric = symmetric_groups(flow, quantized, rules)
        ends = {INPUT: table.INPUT, OUTPUT: table.OUTPUT}
        self._symmetric_kinds = {
            kind for kind, end in ends.items() if rules.is_symmetric([end])
        }
        # Of constants that a product of activations reads, and of weights that follow
        # from others, the engine asks what it asks of weights.
        self._signs_constants = _signs(rules, 'MatMul')
        self._weights = {
            self.groups.find(site.weight_value)
            for site in flow.active
            if site.weight_value is not None and _signs(rules, operator_of(site))
        }
        self._specs: dict[Any, ActivationSpec] = {}
        # Operand of a site to the key of the quantizer that narrows it there.
        self._narrowed: dict[tuple[str, int], Any] = {}
        self._add_inputs()
        self._add_results()
        self._add_narrowed()
        self._add_ends()

    def unique(self) -> tuple[ActivationSpec, ...]:
        """All of them, without repetitions."""
        return tuple({spec.name: spec for spec in self._specs.values()}.values())

    def of(self, value: Optional[int]) -> Optional[ActivationSpec]:
        """The quantizer of a value, if it has one."""
        return None if value is None else self._specs.get(self.groups.find(value))

    def entries(self, site: Site) -> tuple[tuple[int, str], ...]:
        """Operands that are quantized where a site reads them, and by what."""
        found = []
        for index in range(len(site.inputs)):
            key = self._narrowed.get((site.name, index))
            if key is None and self._enters(site, index):
                key = self._key(site, index)
            if key is not None:
                found.append((index, self._specs[key].name))
        return tuple(found)

    def _read_groups(self) -> set[int]:
        """Groups of values that a quantized operation reads."""
        return {
            self.groups.find(value)
            for chain in self.flow.chains.values()
            if not self.overrides.is_off(chain.head)
            for value in chain.head.inputs
            if value is not None
        }

    def _sum_groups(self) -> set[int]:
        """Groups of values that additions read and give, if these have a width."""
        if not self.config.widens_sums:
            return set()
        return {
            self.groups.find(value)
            for chain in self.flow.chains.values()
            if chain.head.kind == ops.ADD
            and len(chain.head.inputs) > 1
            and None not in chain.head.inputs
            for value in (*chain.head.inputs, *chain.tail.outputs)
            if value is not None
        }

    def _bits(self, chain: Chain) -> Any:
        """Override for the chain's result: the last of its modules' own."""
        found = [self._bits(part) for part in self._parts[chain.head.name]]
        found += [self.overrides.of(site) for site in chain.sites]
        return next((bits for bits in reversed(found) if bits is not None), None)

    def _asked(self, chain: Chain) -> Any:
        """Override for what the chain reads: without what a search has raised of it."""
        found = [self.overrides.asked(site) for site in chain.sites]
        return next((bits for bits in reversed(found) if bits is not None), None)

    def _multiplies(self, site: Site) -> bool:
        """Whether a site multiplies integers."""
        multiplies = site.kind in (*ops.WEIGHTED, ops.MATMUL) or site.computed_weight
        return multiplies and not self.overrides.is_off(site)

    def _enters(self, site: Site, index: int) -> bool:
        """Whether no quantized operation has made an operand that must be."""
        value = site.inputs[index]
        return self._multiplies(site) and (value is None or value in self.flow.raw)

    def _is_real(self, key: Any) -> bool:
        """Whether layers give a result as real numbers, to what is in float alone."""
        unseen = key in self._floats and key not in self._leaving
        return unseen and gives_reals(self.config.target)

    def _key(self, site: Site, index: int) -> Any:
        """Key of an operand's quantizer; constants have each their own."""
        value = site.inputs[index]
        return (site.name, index) if value is None else self.groups.find(value)

    def _add(self, key: Any, name: str, kind: str, bits: Any, positive: bool) -> None:
        if key in self._leaving and key not in self._read:
            kind = OUTPUT
        elif key in self._sums:
            kind = SUM
        width = self.config.bits_of(kind, bits)
        known = self._specs.get(key)
        if known is not None:
            width = max(width, known.format.bits)
            name, kind = known.name, known.kind
            positive = positive and known.positive
        fmt = self._format(key, kind).with_bits(width)
        self._specs[key] = ActivationSpec(name, kind, fmt, positive)

    def _format(self, key: Any, kind: str) -> TensorFormat:
        """The preset's, without a zero point where the target takes none."""
        fmt = self.config.preset.activation
        is_constant = isinstance(key, tuple)
        if key in self._weights or (is_constant and self._signs_constants):
            return replace(fmt, symmetric=True, unsigned_if_positive=False)
        is_symmetric = key in self._symmetric or kind in self._symmetric_kinds
        if fmt.symmetric or not is_symmetric:
            return fmt
        return replace(fmt, symmetric=True, unsigned_if_positive=True)

    def _add_inputs(self) -> None:
        for value, entries in self.flow.graph.region_inputs.items():
            call, leaf = entries[0]
            if self.groups.find(value) in self._read:
                name = input_name(call, leaf)
                bits = self.overrides.calls.get(name) or None
                if isinstance(bits, Mapping):
                    # What enters has a width of its own, beside the kinds of a config.
                    bits = bits.get(ACTIVATION)
                self._add(self.groups.find(value), name, INPUT, bits, False)

    def _add_results(self) -> None:
        for site in self.flow.active:
            chain = self.flow.chains.get(site.name)
            if chain is None:
                continue
            bits = self._bits(chain)
            for index in range(len(site.inputs)):
                if self._enters(site, index):
                    name = f'{site.name}:input' + (f'{index}' if index else '')
                    key = self._key(site, index)
                    self._add(key, name, ACTIVATION, bits or None, False)
            clip = chain.clip
            positive = clip is not None and clip[0] is not None and clip[0] >= 0
            for index, value in enumerate(chain.tail.outputs):
                key = self.groups.find(value)
                off = key not in self._read and (bits is False or self._is_real(key))
                if value not in self.flow.raw and not off:
                    name = site.name + (f':{index}' if index else '')
                    self._add(key, name, ACTIVATION, bits or None, positive)

    def _add_ends(self) -> None:
        """Notes beyond which numbers what reads a tensor is flat."""
        flat = FlatEnds(self.flow, self._opened)
        for key, spec in self._specs.items():
            if isinstance(key, int):
                ends = flat.of(key, spec.format.bits)
                self._specs[key] = replace(spec, ends=ends)

    def _add_narrowed(self) -> None:
        """Quantizers of sums where a layer multiplies narrower ones."""
        for site in self.flow.active:
            chain = self.flow.chains.get(site.name)
            if chain is None or not self._multiplies(site):
                continue
            asked = self.config.bits_of(ACTIVATION, self._asked(chain) or None)
            for index in range(len(site.inputs)):
                wide = self._specs.get(self._key(site, index))
                if wide is None or wide.kind != SUM:
                    continue
                raised = self.overrides.calls.get(narrow_name(wide.name, asked))
                width = max(asked, self.config.bits_of(ACTIVATION, raised))
                if wide.format.bits <= width:
                    continue
                # All that read it at this width share it.
                key = self._key(site, index), width
                name = narrow_name(wide.name, width)
                fmt = wide.format.with_bits(width)
                self._narrowed[site.name, index] = key
                self._specs[key] = ActivationSpec(name, ACTIVATION, fmt, wide.positive)

"""Planner: what is quantized, and which calls the target computes as one.

A pure function of a recorded graph and the numeric settings. It decides and does
nothing; what it decides is a :class:`~mmquant_jacinto.plan.plan.Plan`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from ..config.max_drop import MaxDrop, Raised
from ..config.mixed_precision import MixedPrecision
from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError
from ..record import ops
from ..record.graph import Graph, Site
from ..targets.formats import DEPTHWISE, TensorFormat
from ..targets.preset import FINE_BITS
from ..targets.target import get_target
from .activation_specs import ActivationSpecs, input_name
from .channel_pairs import find_pairs
from .file_operators import weight_operator
from .fusion import Chain, Dataflow
from .network import network_of
from .open_results import open_results, overwriting_sums, real_results
from .overrides import Overrides
from .plan import (
    OPERANDS,
    OVERRIDES,
    ActivationSpec,
    Plan,
    Repeat,
    ScaledChannels,
    Step,
    WeightSpec,
)
from .planned_widths import (
    check_widths,
    edge_widths,
    levels_above,
    light_widths,
)
from .scaled_channels import find_scaled_channels


class Planner:
    """Builds a :class:`Plan`; see :func:`make_plan`."""

    def __init__(
        self,
        graph: Graph,
        config: QuantizeConfig,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.config = config
        self.shapes = shapes
        self.preset = config.preset
        self.overrides = Overrides(config.overrides, config.raised_layers)
        self.graph, self.in_float = network_of(graph, self.overrides)
        self.flow = flow = Dataflow(self.graph)
        self.overrides.splines = flow.splines
        self.overrides.edges = edge_widths(flow, config)
        self.active, self.chains = flow.active, flow.chains
        self.rules = get_target(config.target).rules
        quantized = [c for c in flow.chains.values() if not self._is_float(c)]
        self.overrides.light = light_widths(
            quantized, shapes, config, self.overrides.edges
        )
        self.open = open_results(flow, quantized, self.rules)
        flow.raw |= real_results(flow, self._is_float, config.target)
        flow.raw |= self.open.keys()
        self.overwriting = overwriting_sums(flow, self.open, self.rules)
        self.groups, self.raw = flow.groups, flow.raw
        # Of each weight: the (bias, normalization) pairs it is used with.
        self.variants: dict[tuple, set[tuple]] = {}

    def _is_float(self, chain: Chain) -> bool:
        return self.overrides.is_off(chain.head)

    def make(self) -> Plan:
        quantizers = ActivationSpecs(
            self.flow, self.config, self.overrides, self.rules, self.open
        )
        weight_specs = self._weights()
        check_widths(self.rules, self.config, quantizers.unique(), weight_specs)
        steps: dict[str, Step] = {}
        for site in self.active:
            steps.update(self._steps(site, quantizers))
        self.overrides.check_used(self.active)
        # Refuses a budget of time that nothing can be raised for.
        levels_above(self.config, self.rules)
        self._check_raised()
        if not weight_specs:
            raise QuantizeError(
                'this model has nothing to quantize: no convolution or '
                'linear layer was called in its forward pass'
            )
        inputs: dict[str, dict[int, str]] = {}
        for value, entries in self.graph.region_inputs.items():
            spec = quantizers.of(value)
            if spec is None:
                continue
            for call, leaf in entries:
                inputs.setdefault(call, {})[leaf] = spec.name
        for name, function in self.graph.unused.items():
            reason = (
                f'no layer multiplies by it; {function} reads it'
                if function
                else 'no call in a region reads it'
            )
            self.in_float.setdefault(name, reason)
        return Plan(
            config=self._settings(quantizers.unique()),
            regions=tuple(self.graph.regions),
            activations=quantizers.unique(),
            weights=weight_specs,
            steps=steps,
            inputs=inputs,
            in_float=self.in_float,
            pairs=self._pairs(weight_specs),
            undecided=self._undecided(weight_specs),
            repeats={run: Repeat(*known) for run, known in self.graph.repeats.items()},
            scaled=self._scaled(weight_specs, steps, quantizers),
        )

    def _check_raised(self) -> None:
        """Refuses what was raised in another model."""
        inputs = {
            input_name(call, leaf)
            for entries in self.graph.region_inputs.values()
            for call, leaf in entries
        }
        if self.config.raised is not None:
            self.overrides.check_calls({*self.graph.sites, *inputs}, self.config.raised)

    def _undecided(self, specs: Mapping[str, WeightSpec]) -> tuple[str, ...]:
        """Weight quantizers whose width ``quantize.mixed_precision`` chooses."""
        bits = self.config.mixed_precision
        if not (self.config.searches_bits or isinstance(bits, str)):
            return ()
        decided = {
            self._weight_name(chain)
            for chain in self.chains.values()
            if chain.head.weight is not None and self._has_own_width(chain.head)
        }
        return tuple(name for name in specs if name not in decided)

    def _has_own_width(self, site: Site) -> bool:
        """Whether ``quantize.overrides`` gives the weight at a site a width."""
        bits = self.overrides.find(site.module)
        return 'weight' in bits if isinstance(bits, Mapping) else bits is not None

    def _pairs(self, specs: Mapping[str, WeightSpec]) -> tuple[tuple[str, str], ...]:
        """Weight quantizers between whose layers channels are rescaled."""
        if not self.config.equalization:
            return ()
        found = [
            (
                self._weight_name(self.chains[first.name]),
                self._weight_name(self.chains[second.name]),
            )
            for first, second in find_pairs(self.flow, self.shapes)
            if first.name in self.chains and second.name in self.chains
        ]
        pairs = tuple(pair for pair in found if specs.keys() >= set(pair))
        if not pairs:
            raise QuantizeError(
                'quantize.equalize=True finds nothing to equalize: in this model no '
                'quantized layer alone reads another through ReLU, pooling or '
                'nothing (ReLU6 and other bounded activations do not count); '
                'leave it away'
            )
        return pairs

    def _scaled(
        self,
        specs: Mapping[str, WeightSpec],
        steps: Mapping[str, Step],
        quantizers: ActivationSpecs,
    ) -> tuple[ScaledChannels, ...]:
        """Tensors whose channels calibration may rescale."""
        config = self.config
        if not config.scales_channels:
            return ()
        fine = {
            spec.name for spec in quantizers.unique() if spec.format.bits > FINE_BITS
        }
        entered = {step.weight for step in steps.values() if step.entries}

        def quantizer(value: int) -> Optional[str]:
            spec = quantizers.of(value)
            return None if spec is None else spec.name

        found = find_scaled_channels(
            *(self.flow, self._weight_name, quantizer),
            opened=self.open.keys(),
            divides=self.rules.divides_channels,
        )
        return tuple(
            item
            for item in found
            if specs.keys() >= set(item.layers)
            and not entered.intersection(item.consumers)
            # A clamp that was not a channel's own shows on a fine grid.
            and not (item.is_bounded and item.quantizer in fine)
        )

    def _settings(self, quantizers: Sequence[ActivationSpec]) -> dict[str, Any]:
        config = self.config
        bits = config.bits
        settings = dict(
            target=config.target,
            bits=dict(bits) if isinstance(bits, Mapping) else bits,
            **config.observers_of([spec.format.bits for spec in quantizers]),
            percentile=config.percentile,
            per_channel=config.channel_scales,
            constrain_bias=config.bias_constraint,
            bias_bits=config.preset.bias_bits or OPERANDS,
            constrain_weights=config.weight_constraint,
            weight_observer=config.weight_observer_name,
            # A calibration that is fine-tuned learns them at its end.
            learned_scale=config.learning is not None,
            **self._fake_quant(),
        )
        if config.factors_worth is not None:
            settings['scale_channels'] = config.factors_worth
        for key in ('mixed_precision', 'max_drop'):
            budget = getattr(config, key)
            asked = budget.settings if isinstance(budget, Raised) else budget
            if isinstance(asked, (MixedPrecision, MaxDrop)):
                settings[key] = asked.to_dict()
        return settings

    def _fake_quant(self) -> dict[str, Any]:
        given = self.config.fake_quants
        if not given:
            return {}
        kinds = ('weight', 'activation')
        settings = {
            kind: given[kind].to_dict() if kind in given else None for kind in kinds
        }
        return dict(fake_quant=settings)

    def _weights(self) -> dict[str, WeightSpec]:
        for chain in self.chains.values():
            if chain.head.weight is not None:
                key = chain.head.weight, chain.head.rows
                self.variants.setdefault(key, set()).add((chain.head.bias, chain.norm))
        specs: dict[str, WeightSpec] = {}
        for chain in self.chains.values():
            site = chain.head
            if site.weight is None:
                if site.computed_weight and self.overrides.is_off(site):
                    self.in_float[site.name] = OVERRIDES
                continue
            bits = self.overrides.of(site)
            if bits is False:
                self.in_float[site.name] = OVERRIDES
                continue
            name = self._weight_name(chain)
            axis = 1 if site.kind == ops.CONV_TRANSPOSE else 0
            shape = self.shapes[site.weight]
            channels = site.shape[-1 if site.kind == ops.LINEAR else 1 - len(shape)]
            fmt = self._weight_format(site, shape)
            is_grouped = axis == 1 and channels != shape[1]
            if is_grouped or not self._scales_channels(chain):
                # A grouped transposed convolution has no output channel axis.
                fmt = replace(fmt, per_channel=False)
            known = specs.get(name)
            if known is not None:
                # A search may have raised one call of several.
                fmt = fmt.with_bits(max(fmt.bits, known.format.bits))
            specs[name] = WeightSpec(
                name, site.weight, site.bias, chain.norm, axis, fmt, channels, site.rows
            )
        return specs

    def _weight_format(self, site: Site, shape: tuple[int, ...] = ()) -> TensorFormat:
        """Format of a weight; of one that is computed the shape is not known."""
        bits = self.overrides.of(site)
        width = self.config.bits_of('weight', bits)
        scales = self.config.channel_scales
        per_channel = bool(scales)
        if scales == DEPTHWISE:
            # (out, in / groups, ...): each output channel reads one input channel.
            per_channel = site.kind == ops.CONV and shape[1:2] == (1,)
        return replace(self.preset.weight, bits=width, per_channel=per_channel)

    def _scales_channels(self, chain: Chain) -> bool:
        """Whether the target takes scales of the channels of a layer's weight."""
        if chain.head.computed_weight and chain.head.kind == ops.CONV_TRANSPOSE:
            return False  # its groups are not known, and may leave it no such axis
        return self.rules.scales_channels(weight_operator(chain, self.raw))

    def _weight_name(self, chain: Chain) -> str:
        name = chain.head.weight
        assert name is not None
        name = name[: -len('.weight')] if name.endswith('.weight') else name
        if chain.head.rows is not None:
            name += '[{}:{}]'.format(*chain.head.rows)
        # A convolution shared by several normalizations folds each of them.
        variants = self.variants[chain.head.weight, chain.head.rows]
        biases, norms = (set(items) for items in zip(*variants))
        parts = [name]
        if len(biases) > 1 and chain.head.bias is not None:
            parts.append(chain.head.bias)
        if len(norms) > 1 and chain.norm is not None:
            parts.append(chain.norm)
        return '+'.join(parts)

    def _steps(self, site: Site, quantizers: ActivationSpecs) -> dict[str, Step]:
        def name_of(value: Optional[int]) -> Optional[str]:
            spec = quantizers.of(value)
            return None if spec is None else spec.name

        if site.kind in (ops.PASS, ops.CAT):
            inputs = tuple(
                None if value in self.raw else name_of(value) for value in site.inputs
            )
            return {
                site.name: Step(
                    *(site.kind, inputs, site.name, True, name_of(site.outputs[0])),
                    is_shared=site.is_shared,
                )
            }
        entries = quantizers.entries(site)
        inputs = tuple(
            dict(entries).get(index, name_of(value))
            for index, value in enumerate(site.inputs)
        )
        chain = self.chains.get(site.name)
        if chain is None:
            return {}
        weight = None
        if site.weight is not None and not self.overrides.is_off(site):
            weight = self._weight_name(chain)
        weight_format = None
        if site.computed_weight and site.kind in ops.WEIGHTED:
            weight_format = (
                None if self.overrides.is_off(site) else self._weight_format(site)
            )
            if weight_format and not self._scales_channels(chain):
                weight_format = replace(weight_format, per_channel=False)
        again: tuple[str, ...] = ()
        if weight is not None and self.graph.repeats:
            found = {name_of(value) for value in site.further_inputs} - {inputs[0]}
            again = tuple(sorted(filter(None, found)))
        tail = chain.tail.outputs[0]
        output = None if tail in self.raw else name_of(tail)
        steps = {}
        for item in chain.sites:
            head = item is site
            steps[item.name] = Step(
                item.kind,
                inputs if head else (),
                site.name,
                item is chain.tail,
                output,
                weight,
                chain.norm,
                chain.clip,
                entries if head else (),
                weight_format if head else None,
                item.is_shared,
                self.open.get(tail),
                again if head else (),
                head and item.name in self.overwriting,
            )
        return steps


def make_plan(
    graph: Graph, config: QuantizeConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Plan:
    """Decides what is quantized, and which call sites become one operation.

    Args:
        graph (Graph): What was recorded.
        config (QuantizeConfig): Target, widths and overrides.
        shapes (Mapping[str, tuple]): Of each parameter, by name.

    Returns:
        Plan: Plain data.

    Raises:
        QuantizeError: If nothing can be quantized, if a pattern of
            ``quantize.overrides`` matches no module, or if the target's engine has no
            integers of a width.
    """
    return Planner(graph, config, shapes).make()

"""Plan: what is quantized, and how, as plain data.

It goes into checkpoints as JSON, so that a test or an export rebuilds exactly what
was trained and never guesses. :mod:`~mmquant_jacinto.plan.planner` makes it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Optional, Union

from ..errors import QuantizeError
from ..targets.formats import TensorFormat

# Of a plan with scaled channels or open results; with repeats it is 2, else 1: what the
# versions before read, too.
PLAN_VERSION = 4
INPUT, ACTIVATION, SUM, OUTPUT = 'input', 'activation', 'sum', 'output'
OPERANDS = 'operands'  # a bias is as wide as input and weight together
OVERRIDES = 'quantize.overrides'  # the reason why something is in float

Clip = tuple[Optional[float], Optional[float]]


def narrow_name(name: str, bits: int) -> str:
    """What the quantizer of a tensor is called where layers read it narrower."""
    return f'{name}:{bits}bits'


def wide_name(name: str) -> str:
    """The name that :func:`narrow_name` was given; any other as it is."""
    return re.sub(r':\d+bits$', '', name)


def module_of(name: str) -> str:
    """The module whose call a quantizer, or a call site, is named after.

    See :mod:`~mmquant_jacinto.record.call_tree`.
    """
    calls = name.rpartition('/')[0].rpartition('>')[2]
    return re.sub(r'#\d+', '', calls)


@dataclass(frozen=True)
class ActivationSpec:
    """One activation quantizer; several tensors may share it.

    Args:
        name (str): Name of the first tensor that it quantizes.
        kind (str): ``'input'`` (enters a region from outside),
            ``'activation'``, ``'sum'`` (an addition reads or gives it) or
            ``'output'`` (leaves the last region).
        format (TensorFormat): Its numeric format.
        positive (bool): Whether the tensor is known to have no negative
            elements, because it is clamped at zero.
        ends (Clip, optional): Beyond which numbers all that reads it is flat, see
            :mod:`~mmquant_jacinto.plan.flat_ends`: how its range is found.
    """

    name: str
    kind: str
    format: TensorFormat
    positive: bool = False
    ends: Optional[Clip] = field(default=None, compare=False)


@dataclass(frozen=True)
class WeightSpec:
    """One weight quantizer: a parameter, with what is folded into it.

    Args:
        name (str): Unique name; the parameter's, without ``.weight``.
        weight (str): Name of the parameter.
        bias (str, optional): Name of the bias parameter.
        norm (str, optional): Batch normalization module folded into it.
        axis (int): Output channel axis of the weight.
        format (TensorFormat): Its numeric format.
        channels (int): Number of output channels.
        rows (Tuple[int, int], optional): The part of the parameters that it
            is, along their first axis: start and stop. None: all of them.
    """

    name: str
    weight: str
    bias: Optional[str]
    norm: Optional[str]
    axis: int
    format: TensorFormat
    channels: int
    rows: Optional[tuple[int, int]] = None


@dataclass(frozen=True)
class ScaledChannels:
    """A tensor whose channels are each divided by a factor of their own.

    See :mod:`~mmquant_jacinto.plan.scaled_channels`.

    Args:
        quantizer (str): Of the tensor.
        producer (str, optional): Weight quantizer of the convolution that makes it;
            None where something else does, and it is divided as it is quantized.
        consumers (Tuple[str, ...]): Those of the convolutions that read it; none
            where a smooth activation does.
        channels (int): Number of channels.
        dims (int): Number of axes behind them.
        is_bounded (bool): Whether a clamp bounds the tensor from above.
    """

    quantizer: str
    producer: Optional[str]
    consumers: tuple[str, ...]
    channels: int
    dims: int
    is_bounded: bool = False

    @property
    def layers(self) -> tuple[str, ...]:
        """Tuple[str, ...]: Weight quantizers of all layers that take factors in."""
        return (
            self.consumers
            if self.producer is None
            else (
                self.producer,
                *self.consumers,
            )
        )

    @property
    def is_opened(self) -> bool:
        """bool: Whether an operation between two grids multiplies or divides."""
        return self.producer is None or not self.consumers


@dataclass(frozen=True)
class Step:
    """What happens at one call site.

    Sites that the target computes as one operation form a chain: a head
    (convolution, addition, ...) and followers fused into it (batch
    normalization, a clamping activation).

    Args:
        kind (str): Kind of the operation, see :mod:`~mmquant_jacinto.record.ops`.
        inputs (Tuple[str | None]): Quantizer of each operand; empty for a
            follower.
        chain (str): Name of the chain's head; its own name for a head.
        last (bool): Whether the chain's result appears here.
        output (str, optional): Quantizer of the chain's result.
        weight (str, optional): Weight quantizer of the chain.
        norm (str, optional): Batch normalization that the chain folds.
        clip (Clip, optional): Real bounds that the chain clamps to.
        entries (Tuple[Tuple[int, str]]): Operands that no quantized
            operation made, or one that made them wider than they are
            multiplied, and the quantizers that they get here.
        weight_format (TensorFormat, optional): Of a weight that the model
            computes anew in each pass; its grid follows from it.
        is_shared (bool): Whether others read what a call in place changes, through
            views of its memory.
        joins (str, optional): The call that the target computes as one with it,
            and that has the grid of both.
        again (Tuple[str]): Quantizers of what a layer reads where its run is one again,
            see :class:`Repeat`.
        overwrites (bool): Whether the target computes a sum in the memory of the
            operand that no layer joins, which nobody else needs by then.
    """

    kind: str
    inputs: tuple[Optional[str], ...]
    chain: str
    last: bool
    output: Optional[str] = None
    weight: Optional[str] = None
    norm: Optional[str] = None
    clip: Optional[Clip] = None
    entries: tuple[tuple[int, str], ...] = ()
    weight_format: Optional[TensorFormat] = None
    is_shared: bool = False
    joins: Optional[str] = None
    again: tuple[str, ...] = ()
    overwrites: bool = False

    @property
    def follows(self) -> bool:
        """bool: Whether it is fused into the head of its chain."""
        return not self.inputs


@dataclass(frozen=True)
class Repeat:
    """A run of a module that is a former one again.

    Its caller goes back to where that one began, and counts on from there.

    Args:
        begin (str): The former run.
        kept (Tuple[str]): What the caller goes on counting: modules, and functions
            behind a slash.
    """

    begin: str
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything needed to rebuild a quantized model around its float one.

    Args:
        config (dict): The numeric settings it was made from: target, bits,
            observer, percentile, bias constraint.
        regions (Tuple[str]): Names of the regions' modules.
        activations (Tuple[ActivationSpec]): In order of first use.
        weights (Dict[str, WeightSpec]): By name.
        steps (Dict[str, Step]): By name of the call site.
        inputs (Dict[str, Dict[int, str]]): Call of a region to (index among
            the leaves of its arguments to activation quantizer).
        in_float (Dict[str, str]): Weighted call sites, and weights, that are
            not quantized, each with the reason.
        pairs (Tuple[Tuple[str, str]]): Weight quantizers between whose layers
            channels are rescaled before anything is quantized.
        undecided (Tuple[str]): Weight quantizers whose width is still to be
            chosen, see :mod:`~mmquant_jacinto.methods.mixed_precision`.
        repeats (Dict[str, Repeat]): By name of the run.
        scaled (Tuple[ScaledChannels]): Tensors whose channels calibration may rescale.
    """

    config: dict[str, Any]
    regions: tuple[str, ...]
    activations: tuple[ActivationSpec, ...]
    weights: dict[str, WeightSpec]
    steps: dict[str, Step]
    inputs: dict[str, dict[int, str]]
    in_float: dict[str, str] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    undecided: tuple[str, ...] = ()
    repeats: dict[str, Repeat] = field(default_factory=dict)
    scaled: tuple[ScaledChannels, ...] = ()

    @property
    def specs(self) -> tuple[Union[ActivationSpec, WeightSpec], ...]:
        """Tuple[ActivationSpec | WeightSpec]: Of all quantizers."""
        return (*self.activations, *self.weights.values())

    def bias_width(self, weight: str) -> int:
        """Width in bits of the bias that belongs to a weight quantizer."""
        bits = self.config['bias_bits']
        own = self.weights[weight].format.bits
        if bits == OPERANDS:
            return own + self.input_bits.get(weight, own)
        # Plans of earlier versions have None for twice the weight's.
        return bits or 2 * own

    @cached_property
    def input_bits(self) -> dict[str, int]:
        """Dict[str, int]: Width of the widest tensor that each weight multiplies."""
        widths = {spec.name: spec.format.bits for spec in self.activations}
        found: dict[str, int] = {}
        for step in self.steps.values():
            if step.weight is not None and not step.follows and step.inputs[0]:
                bits = widths[step.inputs[0]]
                found[step.weight] = max(bits, found.get(step.weight, 0))
        return found

    @property
    def is_learned(self) -> bool:
        """bool: Whether scales are parameters of the training."""
        return bool(self.config.get('learned_scale'))

    def with_learned_scales(self) -> 'Plan':
        """This plan with scales that are parameters of a training."""
        return replace(self, config=dict(self.config, learned_scale=True))

    def takes_state_of(self, other: 'Plan') -> bool:
        """Whether the quantizer state of another plan means the same here.

        How ranges were found makes no difference to what they are.
        """
        parts = [
            (
                plan.activations,
                plan.weights,
                # Where a sum is computed makes no difference to what it is.
                {n: replace(s, overwrites=False) for n, s in plan.steps.items()},
                plan.inputs,
                plan.repeats,
            )
            for plan in (self, other)
        ]
        return (
            parts[0] == parts[1]
            and (self.is_learned or not other.is_learned)
            and other.scaled in ((), self.scaled)
        )

    def with_weight_bits(self, widths: Mapping[str, int]) -> 'Plan':
        """This plan with other widths of some weight quantizers, by name."""
        weights = {
            name: replace(spec, format=spec.format.with_bits(widths.get(name)))
            for name, spec in self.weights.items()
        }
        return replace(self, weights=weights)

    def decides(self, other: 'Plan') -> bool:
        """Whether this is ``other`` with its undecided widths chosen."""
        if self.undecided or not self.weights.keys() == other.weights.keys():
            return False
        widths = {name: self.weights[name].format.bits for name in other.undecided}
        decided = replace(other.with_weight_bits(widths), undecided=())
        return self.to_json() == decided.to_json()

    def keeps_budget_of(self, other: 'Plan') -> bool:
        """Whether a search for the budget of ``other`` may have ended in this.

        Of accuracy, or of time.
        """
        keys = ('target', 'bits', 'max_drop', 'mixed_precision')
        given = [[plan.config.get(key) for key in keys] for plan in (self, other)]
        mixed = given[0][-1] or {}
        has_one = given[0][-2] is not None or mixed.get('latency') is not None
        return given[0] == given[1] and has_one

    def to_json(self) -> str:
        """Serializes the plan."""
        data = asdict(self)
        for name in ('repeats', 'scaled'):
            # As earlier versions wrote it.
            if not data[name]:
                del data[name]
        for spec in data['activations']:
            if spec['ends'] is None:
                del spec['ends']
        for step in data['steps'].values():
            for key in ('is_shared', 'joins', 'again', 'overwrites'):
                if not step[key]:
                    del step[key]
        has_open = any(step.joins is not None for step in self.steps.values())
        is_new = self.scaled or has_open
        version = 3 if is_new else 2 if self.repeats else 1
        if any(step.overwrites for step in self.steps.values()):
            version = PLAN_VERSION
        return json.dumps({'version': version, **data}, separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str) -> 'Plan':
        """Rebuilds a plan.

        Raises:
            QuantizeError: If it was written by a later version.
        """
        data = json.loads(text)
        version = data.pop('version')
        if version > PLAN_VERSION:
            raise QuantizeError(
                f'the plan in this checkpoint has version {version}; this '
                f'mmquant_jacinto reads up to {PLAN_VERSION}: update it'
            )
        return cls(
            config=data['config'],
            regions=tuple(data['regions']),
            activations=tuple(_activation_spec(item) for item in data['activations']),
            weights={
                name: _weight_spec(item) for name, item in data['weights'].items()
            },
            steps={name: _step(item) for name, item in data['steps'].items()},
            inputs={
                call: {int(leaf): name for leaf, name in leaves.items()}
                for call, leaves in data['inputs'].items()
            },
            in_float=data['in_float'],
            pairs=tuple(tuple(pair) for pair in data.get('pairs', ())),
            undecided=tuple(data.get('undecided', ())),
            repeats={
                name: Repeat(item['begin'], tuple(item['kept']))
                for name, item in data.get('repeats', {}).items()
            },
            scaled=tuple(_scaled(item) for item in data.get('scaled', ())),
        )


def count_calls(plan: Plan) -> dict[str, int]:
    """Calls of each layer in a pass, by weight quantizer.

    Where parts of the model run again, however often, any layer may be in them: all
    count once more.
    """
    calls: dict[str, int] = {}
    for step in plan.steps.values():
        if step.weight is not None and not step.follows:
            calls[step.weight] = calls.get(step.weight, int(bool(plan.repeats))) + 1
    return calls


def _tuple(value: Optional[list]) -> Optional[tuple]:
    return None if value is None else tuple(value)


def _scaled(item: dict[str, Any]) -> ScaledChannels:
    return ScaledChannels(**{**item, 'consumers': tuple(item['consumers'])})


def _activation_spec(item: dict[str, Any]) -> ActivationSpec:
    fmt = TensorFormat(**item['format'])
    return ActivationSpec(**{**item, 'format': fmt, 'ends': _tuple(item.get('ends'))})


def _weight_spec(item: dict[str, Any]) -> WeightSpec:
    fmt = TensorFormat(**item['format'])
    return WeightSpec(**{**item, 'format': fmt, 'rows': _tuple(item.get('rows'))})


def _step(item: dict[str, Any]) -> Step:
    fmt = item.get('weight_format')
    return Step(
        **{
            **item,
            'inputs': tuple(item['inputs']),
            'clip': _tuple(item['clip']),
            'entries': tuple(tuple(entry) for entry in item.get('entries', ())),
            'again': tuple(item.get('again', ())),
            'weight_format': None if fmt is None else TensorFormat(**fmt),
        }
    )

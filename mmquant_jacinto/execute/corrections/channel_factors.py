"""Channel factors: what the channels of a tensor are divided by, from what they reach.

A channel that reaches little has few steps on the grid of a tensor in which another
reaches far. As SmoothQuant (Xiao et al., arXiv 2211.10438) does with the inputs of
linear layers, each channel is divided by ``reach ** a / weight ** (1 - a)``, where the
weight is the largest that multiplies it: a part of the unevenness goes to the weights
that read it. Which part, and how far the grid reaches below zero, is what gives the
layers that read it the least noise, by a model of it (:mod:`channel_noise`).
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...plan.plan import ScaledChannels, Step
from ...quantizers.activation_grids import power_of_two_above
from ...quantizers.layers import Layer, channel_rows
from ...quantizers.observers import is_distributed
from ...quantizers.weights import bias_limits
from ...record import ops
from ...record.ops import Op
from ...targets.formats import integer_bounds
from ...targets.preset import FINE_BITS
from ..behaviour import Behaviour
from ..state import State
from .channel_noise import TINY, ChannelUse, Maker, Reader, alive
from .conditioning import change_once

# No channel is enlarged by more than this.
MAX_FACTOR = 2.0**8
# How much further than on the images of calibration a channel may reach before a
# clamp that was not its own cuts it off.
HEADROOM = 1.5
# The same on grids of more than ``FINE_BITS``.
FINE_HEADROOM = 16.0
# Share by which a grid of a power of two reaches further than what it is fitted to.
MARGIN = 2.0**-7
# Decibels of noise that rescaling must be worth where it costs nothing in the file.
WORTH = 1.0
# The same where it is a multiplication in front of a smooth activation, or a division
# behind it. Files for ONNX Runtime compute each in float: COCO's YOLOX-Nano has 170
# with 2 dB, and takes 2.3 times as long as in float; 42 with 8 dB, 1.7 times, but its
# scores are off by twice as much on some images.
WORTH_OPENED = 2.0
# Parts of the unevenness that the grid takes; the weights take the rest.
SHARES = (1.0, 0.75, 0.5)
# How far grids reach below zero, over how far above.
BALANCES = tuple(2.0**k for k in range(-4, 3))


class _Measured(NamedTuple):
    """What is known of the channels of a tensor: (C,) each.

    Args:
        low (Tensor): How far they reach below zero.
        high (Tensor): How far above it.
        squares (Tensor): Sums of squares, float64.
        deviations (Tensor): Sums of distances from the mean of a batch, float64.
        elements (Tensor): How many a channel has had, float64: (1,).
    """

    low: Tensor
    high: Tensor
    squares: Tensor
    deviations: Tensor
    elements: Tensor

    @classmethod
    def nothing(cls, channels: int, device: torch.device) -> _Measured:
        """Of so many channels that nothing is known of."""
        low, high = torch.zeros(2, channels, device=device)
        sums = torch.zeros(2, channels, dtype=torch.float64, device=device)
        elements = torch.zeros(1, dtype=torch.float64, device=device)
        return cls(low, high, sums[0], sums[1], elements)

    def note(self, rows: Tensor) -> None:
        """Keeps what reaches further: (n, C); what is not finite says nothing."""
        for known, reach in ((self.low, -rows.amin(0)), (self.high, rows.amax(0))):
            torch.maximum(known, reach.nan_to_num(0.0, 0.0, 0.0), out=known)
        finite = rows.nan_to_num(0.0, 0.0, 0.0)
        self.squares.add_(finite.square().sum(0))
        self.deviations.add_((finite - finite.mean(0)).abs().sum(0))
        self.elements.add_(len(rows))

    @property
    def reach(self) -> Tensor:
        """Tensor: Largest magnitudes."""
        return torch.maximum(self.low, self.high)

    @property
    def power(self) -> Tensor:
        """Tensor: Mean squares."""
        return (self.squares / self.elements.clamp(min=1)).float()

    @property
    def spread(self) -> Tensor:
        """Tensor: Squared mean distances from the mean."""
        return (self.deviations / self.elements.clamp(min=1)).square().float()


class ChannelReach(Behaviour):
    """Runs in float, and measures how far channels, and what layers read, reach.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._groups = {group.quantizer: group for group in state.plan.scaled}
        specs = {spec.name: spec for spec in state.activations.specs}
        self._specs = {name: specs[name] for name in self._groups}
        self._opening = state.plan.config.get('scale_channels', WORTH_OPENED)
        device = state.activations.low.device
        self._measured = {
            name: _Measured.nothing(group.channels, device)
            for name, group in self._groups.items()
        }
        # Of layers to which a factor costs something.
        self._inputs = {
            group.producer: _Measured.nothing(1, device)
            for group in state.plan.scaled
            if group.producer is not None
            and not state.layers[group.producer].spec.format.per_channel
        }

    def begin(self) -> None:
        # Grids are found for the scaled weights.
        change_once(self.state)

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.weight in self._inputs and step.kind in ops.WEIGHTED:
            x = ops.layer_operands(args, kwargs)[0]
            if x.numel():
                self._inputs[step.weight].note(x.detach().float().reshape(-1, 1))
        out = func(*args, **kwargs)
        return out if step.kind in (ops.PASS, ops.CAT) else self.after_norm(step, out)

    def after_norm(self, step: Step, x: Any) -> Any:
        group = self._groups.get(step.output) if step.last and step.output else None
        if group is not None and isinstance(x, Tensor) and x.numel():
            self._measure(group, x.detach().float())
        return x

    def _measure(self, group: ScaledChannels, x: Tensor) -> None:
        known, ends = self._measured[group.quantizer], self._specs[group.quantizer].ends
        x = x if ends is None else x.clamp(*ends)
        axis = x.dim() - group.dims - 1
        known.note(x.movedim(axis, -1).reshape(-1, group.channels))

    @torch.no_grad()
    def factors(self) -> Tensor:
        """What all channels are divided by, the same in all processes.

        Every process must call it equally often.

        Returns:
            Tensor: Of ``plan.scaled``, end to end, float32; 1 where it is not worth it.
        """
        self._reduce()
        inputs = {name: item.reach for name, item in self._inputs.items()}
        found = []
        for name, group in self._groups.items():
            measured = self._measured[name]
            factor = self._factor(group, measured, inputs)
            for consumer in group.consumers:
                # What the next layers read is scaled.
                inputs[consumer] = (measured.reach / factor).max()
            found.append(factor)
        return torch.cat(found)

    def _reduce(self) -> None:
        if not is_distributed():
            return
        measured = [*self._measured.values(), *self._inputs.values()]
        for parts, how in (
            ([x for item in measured for x in item[:2]], dist.ReduceOp.MAX),
            ([x for item in measured for x in item[2:]], dist.ReduceOp.SUM),
        ):
            flat = torch.cat(parts)
            dist.all_reduce(flat, op=how)
            for part, reduced in zip(parts, flat.split([len(x) for x in parts])):
                part.copy_(reduced)

    def _factor(
        self, group: ScaledChannels, measured: _Measured, inputs: dict[str, Tensor]
    ) -> Tensor:
        """The candidate with the least noise, if it is worth it: (C,)."""
        fmt = self._specs[group.quantizer].format
        readers = [Reader(self.state.layers[name]) for name in group.consumers]
        maker, least = None, []
        if group.producer is not None:
            layer = self.state.layers[group.producer]
            if not layer.spec.format.per_channel:
                maker = Maker(layer, self._inputs[group.producer].power.squeeze())
                least = self._least_factors(group, layer, inputs[group.producer])
        powers = measured.power, measured.spread
        use = ChannelUse(*measured[:2], *powers, fmt, readers, maker)
        candidates = [torch.ones_like(measured.low)]
        for factor in candidate_factors(use, group.is_bounded):
            limited = [factor.maximum(x).clamp(max=1.0) for x in least] or [factor]
            for factor in limited:
                candidates.append(factor)
                if fmt.power_of_two and not group.is_bounded:
                    # The range ends where the grid does.
                    reach = use.reach(factor) * (1 + MARGIN)
                    fills = factor * reach / power_of_two_above(reach)
                    candidates.append(fills.clamp(max=1.0))
        noise = torch.stack([use.noise(factor) for factor in candidates])
        # What is not known to be better is not taken.
        noise = noise.nan_to_num(torch.inf, torch.inf)
        noise[0] /= 10 ** ((self._opening if group.is_opened else WORTH) / 10)
        return torch.stack(candidates)[noise.argmin()]

    def _least_factors(
        self, group: ScaledChannels, layer: Layer, input_reach: Tensor
    ) -> list[Tensor]:
        """Least factors of a layer with one scale for all weights: (C,) each.

        No divided bias may outgrow its width in steps of the accumulator. With one of
        them no divided row becomes the largest either.
        """
        weight, bias = layer.folded()
        rows = channel_rows(layer, weight).abs().amax(1)
        largest = rows.max().clamp(min=TINY)
        least = torch.zeros_like(rows)
        if bias is not None and self.state.plan.config['constrain_bias'] is not None:
            plan, fmt = self.state.plan, layer.spec.format
            steps = bias_limits(plan.bias_width(group.producer))[1]
            bits = plan.input_bits.get(group.producer, fmt.bits)
            step = input_reach / 2**bits * largest / integer_bounds(fmt)[1]
            least = bias.abs() / (step * steps).clamp(min=TINY)
        return [least, least.maximum(rows / largest)]


def candidate_factors(use: ChannelUse, is_bounded: bool) -> list[Tensor]:
    """What channels may be divided by; no more than 1.

    Args:
        use (ChannelUse): How far they reach, and what reads them.
        is_bounded (bool): Whether a clamp bounds them from above. It still holds all
            that it held: a channel that it reaches keeps its scale.

    Returns:
        List[Tensor]: (C,) each, float32.
    """
    found = []
    for reach in _reaches(use):
        for share in SHARES if use.readers else SHARES[:1]:
            factor = reach**share
            if share < 1:
                factor = factor / use.weight_reach() ** (1 - share)
            if is_bounded:
                factor = factor * (reach / factor).max() / reach.max()
                # Other images reach further.
                factor = factor.maximum(reach * (HEADROOM / reach.max()))
            else:
                factor = factor / factor.max()
            if use.format.bits > FINE_BITS:
                room = reach * (FINE_HEADROOM / (reach / factor).max())
                factor = factor.maximum(room)
            found.append(factor.clamp(1 / MAX_FACTOR, 1.0))
    return found


def _reaches(use: ChannelUse) -> list[Tensor]:
    """How far channels reach, by how far a grid reaches below zero: (C,) each."""
    if use.format.symmetric:
        return [alive(torch.maximum(use.low, use.high))]
    return [alive(torch.maximum(use.low / part, use.high)) for part in BALANCES]

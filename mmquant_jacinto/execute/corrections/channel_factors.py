"""Channel factors: what the channels of a tensor are divided by, from what they reach.

A channel that reaches little has few steps on the grid of a tensor in which another
reaches far. As SmoothQuant (Xiao et al., arXiv 2211.10438) does with the inputs of
linear layers, each channel is divided by ``sqrt(reach / weight)``, where the weight is
the largest that multiplies it: half of the unevenness goes to the weights that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ...plan.plan import ScaledChannels, Step
from ...quantizers.equalize import input_reach
from ...quantizers.layers import Layer, channel_rows
from ...quantizers.observers import is_distributed
from ...quantizers.weights import bias_limits
from ...record import ops
from ...record.ops import Op
from ...targets.formats import integer_bounds
from ..behaviour import Behaviour
from ..conditioning import change_once
from ..state import State

# Least share of a channel's reach, or weight, in the largest: dead ones have none.
LEAST = 2.0**-12
# No channel is enlarged by more than this.
MAX_FACTOR = 2.0**8
# How much further than on the images of calibration a channel may reach before a
# clamp that was not its own cuts it off.
HEADROOM = 1.5
# Decibels of noise that rescaling must be worth: it costs a multiplication in the
# file where a smooth activation is in between, and nothing elsewhere.
WORTH, WORTH_OPENED = 1.0, 2.0
TINY = torch.finfo(torch.float32).tiny


class ChannelReach(Behaviour):
    """Runs in float, and measures how far channels, and what layers read, reach.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._groups = {group.quantizers[-1]: group for group in state.plan.scaled}
        device = state.activations.low.device
        self._reach = {
            name: torch.zeros(group.channels, device=device)
            for name, group in self._groups.items()
        }
        self._input_reach = {
            group.producer: torch.zeros(1, device=device)
            for group in state.plan.scaled
            if group.producer is not None
        }

    def begin(self) -> None:
        # Grids are found for the scaled weights.
        change_once(self.state)

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.weight in self._input_reach and step.kind in ops.WEIGHTED:
            x = ops.layer_operands(args, kwargs)[0]
            if x.numel():
                _note(self._input_reach[step.weight], x.detach().float().abs().amax())
        out = func(*args, **kwargs)
        return out if step.kind in (ops.PASS, ops.CAT) else self.after_norm(step, out)

    def after_norm(self, step: Step, x: Any) -> Any:
        group = self._groups.get(step.output) if step.last and step.output else None
        if group is not None and isinstance(x, Tensor) and x.numel():
            axis = x.dim() - group.dims - 1
            dims = [d for d in range(x.dim()) if d != axis]
            reach = x.detach().float().abs().amax(dims)
            _note(self._reach[group.quantizers[-1]], reach)
        return x

    @torch.no_grad()
    def factors(self) -> Tensor:
        """What all channels are divided by, the same in all processes.

        Every process must call it equally often.

        Returns:
            Tensor: Of ``plan.scaled``, end to end, float32; 1 where it is not worth it.
        """
        measured = [*self._reach.values(), *self._input_reach.values()]
        flat = torch.cat(measured)
        if is_distributed():
            dist.all_reduce(flat, op=dist.ReduceOp.MAX)
        parts = flat.split([len(x) for x in measured])
        inputs = dict(zip(self._input_reach, parts[len(self._reach) :]))
        found = []
        for group, reach in zip(self._groups.values(), parts):
            factor = self._factor(group, reach, inputs)
            for name in group.consumers:
                # What the next layers read is scaled.
                inputs[name] = (reach / factor).max()
            found.append(factor)
        return torch.cat(found)

    def _factor(
        self, group: ScaledChannels, reach: Tensor, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        layers = [self.state.layers[name] for name in group.consumers]
        factor = channel_factor(reach, _weight_reach(layers, len(reach)), group)
        name = group.producer
        if name is not None and not self.state.layers[name].spec.format.per_channel:
            least = self._least_factor(name, inputs[name])
            factor = factor.maximum(least).clamp(max=1.0)
        opened = len(group.quantizers) > 1
        worth = noise_ratio(reach, factor) > (WORTH_OPENED if opened else WORTH)
        return torch.where(worth, factor, torch.ones_like(factor))

    def _least_factor(self, name: str, input_reach: Tensor) -> Tensor:
        """What keeps the one grid of a layer's weights as fine as it is: (C,).

        No divided row may become the largest, and no divided bias outgrow its width
        in steps of the accumulator.
        """
        layer = self.state.layers[name]
        weight, bias = layer.folded()
        rows = channel_rows(layer, weight).abs().amax(1)
        largest = rows.max().clamp(min=TINY)
        least = rows / largest
        if bias is not None and self.state.plan.config['constrain_bias'] is not None:
            plan, fmt = self.state.plan, layer.spec.format
            steps = bias_limits(plan.bias_width(name))[1]
            bits = plan.input_bits.get(name, fmt.bits)
            step = input_reach / 2**bits * largest / integer_bounds(fmt)[1]
            least = least.maximum(bias.abs() / (step * steps).clamp(min=TINY))
        return least


def _note(known: Tensor, reach: Tensor) -> None:
    """Keeps the larger; what is not finite says nothing."""
    torch.maximum(known, reach.nan_to_num(0.0, 0.0), out=known)


def channel_factor(reach: Tensor, weight: Tensor, group: ScaledChannels) -> Tensor:
    """What channels are divided by; no more than 1.

    Args:
        reach (Tensor): Largest magnitude of each channel: (C,).
        weight (Tensor): Largest weight that multiplies it: (C,).
        group (ScaledChannels): What they are.

    Returns:
        Tensor: (C,), float32. A clamp from above still holds all that it held: a
        channel that it reaches keeps its scale.
    """
    reach, weight = _alive(reach), _alive(weight)
    factor = (reach / weight).sqrt()
    if group.is_bounded:
        factor = factor * (reach / factor).max() / reach.max()
        # Other images reach further.
        factor = factor.maximum(reach * (HEADROOM / reach.max()))
    else:
        factor = factor / factor.max()
    return factor.clamp(1 / MAX_FACTOR, 1.0)


def noise_ratio(reach: Tensor, factor: Tensor) -> Tensor:
    """By how many decibels the channels' own noise falls: zero-dimensional.

    The step of a grid is in proportion to what the tensor reaches, and a channel's
    noise to the step, in terms of the channel.
    """
    reach = _alive(reach)
    before = (reach.max() / reach).square().mean()
    after = ((reach / factor).max() * factor / reach).square().mean()
    return 10 * (before / after).log10()


def _alive(values: Tensor) -> Tensor:
    return values.clamp(min=values.max() * LEAST).clamp(min=TINY)


def _weight_reach(layers: list[Layer], channels: int) -> Tensor:
    """Largest folded weight that multiplies each channel: (C,)."""
    reaches = [input_reach(x, x.folded()[0].float(), channels) for x in layers]
    return torch.stack(reaches).amax(0)

"""A model of the noise that a grid makes in the layers that read its tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...quantizers.activation_grids import power_of_two_above
from ...quantizers.equalize import input_reach
from ...quantizers.layers import Layer, channel_rows
from ...targets.formats import TensorFormat, integer_bounds

# Least share of a channel's reach, weight or power in the largest: dead ones have none.
LEAST = 2.0**-12
TINY = torch.finfo(torch.float32).tiny


def alive(values: Tensor) -> Tensor:
    """Values, the least of them :data:`LEAST` of the largest."""
    return values.clamp(min=values.max() * LEAST).clamp(min=TINY)


def step_of(reach: Tensor, fmt: TensorFormat) -> Tensor:
    """Of a grid for weights that reach so far."""
    reach = reach.clamp(min=TINY)
    if fmt.power_of_two:
        return power_of_two_above(reach) / (integer_bounds(fmt)[1] + 1)
    return reach / integer_bounds(fmt)[1]


class Reader:
    """A layer that reads scaled channels.

    Args:
        layer (Layer): With its weights as they are before anything is scaled.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        weight = layer.folded()[0].float()
        dims = tuple(range(2, weight.dim()))
        # One number for each pair of channels, whatever the size of the kernel.
        self._reach = weight.abs().amax(dims, keepdim=True)
        self._power = weight.square().sum(dims, keepdim=True)
        self._size = math.prod(weight.shape[2:])

    def reach(self, channels: int) -> Tensor:
        """Largest weight that multiplies each input channel: (C,)."""
        return input_reach(self._layer, self._reach, channels)

    def noise(
        self, factor: Tensor, squared: Tensor, power: Tensor, spread: Tensor
    ) -> Tensor:
        """Noise over signal of what it gives, mean over its channels.

        Rounding makes a twelfth of the squared step (Widrow, 1956), on the grid in
        front and in the weights; nothing of it is correlated. The grid's noise is as
        large where the signal is small, which is nearly everywhere if few elements
        reach far: it counts against the spread. That of the weights grows with what
        they multiply: it counts against the power.

        Args:
            factor (Tensor): What the channels that it reads are divided by: (C,).
            squared (Tensor): Twelve times the squared noise of the divided tensor.
            power (Tensor): Mean squares of the channels: (C,).
            spread (Tensor): Squared mean distances from their means: (C,).
        """
        layer = self._layer
        signal = self._rows(self._power * layer.along_inputs(power)).sum(1)
        detail = self._rows(self._power * layer.along_inputs(spread)).sum(1)
        scaled = layer.along_inputs(factor)
        from_grid = self._rows(self._power * scaled.square()).sum(1) * squared
        reach = self._rows(self._reach * scaled).amax(1)
        if not layer.spec.format.per_channel:
            reach = reach.max()
        weight_step = step_of(reach, layer.spec.format)
        inputs = (layer.along_inputs(power) / scaled.square()).expand_as(self._reach)
        from_weights = self._rows(inputs).sum(1) * self._size * weight_step.square()
        noise = from_grid / alive(detail) + from_weights / alive(signal)
        return noise.mean() / 12

    def _rows(self, values: Tensor) -> Tensor:
        return channel_rows(self._layer, values)


class Maker:
    """A layer that makes scaled channels, with one scale for all of its weights.

    Where each of its channels has a scale, it takes any factor in for nothing.

    Args:
        layer (Layer): With its weights as they are before anything is scaled.
        power (Tensor): Mean square of what it reads: zero-dimensional.
    """

    def __init__(self, layer: Layer, power: Tensor) -> None:
        self._format = layer.spec.format
        rows = channel_rows(layer, layer.folded()[0].float())
        self._reach = rows.abs().amax(1)
        self._power = power * rows.shape[1]

    def noise(self, factor: Tensor) -> Tensor:
        """Twelve times the squared noise of its weights, in divided channels."""
        step = step_of((self._reach / factor).max(), self._format)
        return self._power * step.square()


class ChannelUse:
    """How far the channels of a tensor reach, and what makes and reads them.

    Args:
        low (Tensor): How far they reach below zero: (C,).
        high (Tensor): How far above it: (C,).
        power (Tensor): Their mean squares: (C,).
        spread (Tensor): Their squared mean distances from their means: (C,).
        fmt (TensorFormat): Of the tensor's grid.
        readers (List[Reader]): None: a function of each element.
        maker (Maker, optional): What makes it, where factors cost that something.
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        power: Tensor,
        spread: Tensor,
        fmt: TensorFormat,
        readers: list[Reader],
        maker: Maker | None = None,
    ) -> None:
        self.low, self.high, self.power, self.spread = low, high, power, spread
        self.format, self.readers, self.maker = fmt, readers, maker

    def weight_reach(self) -> Tensor:
        """Largest weight that multiplies each channel: (C,)."""
        reaches = [reader.reach(len(self.low)) for reader in self.readers]
        return alive(torch.stack(reaches).amax(0))

    def reach(self, factor: Tensor) -> Tensor:
        """How far the divided channels reach: zero-dimensional."""
        return (
            torch.maximum(self.low / factor, self.high / factor).max().clamp(min=TINY)
        )

    def step(self, factor: Tensor) -> Tensor:
        """Of the grid that holds the divided channels: zero-dimensional."""
        low, high = (self.low / factor).max(), (self.high / factor).max()
        size = low + high
        if self.format.symmetric:
            sides = 2.0 - (low <= 0).float() * float(self.format.unsigned_if_positive)
            size = torch.maximum(low, high) * sides
        size = size.clamp(min=TINY)
        size = power_of_two_above(size) if self.format.power_of_two else size
        return size / 2**self.format.bits

    def noise(self, factor: Tensor) -> Tensor:
        """Noise over signal where channels are divided by ``factor``."""
        squared = self.step(factor).square()
        if self.maker is not None:
            squared = squared + self.maker.noise(factor)
        if not self.readers:
            return (factor.square() / alive(self.spread)).mean() * squared / 12
        powers = self.power, self.spread
        noises = [reader.noise(factor, squared, *powers) for reader in self.readers]
        return torch.stack(noises).mean()

"""Equalize: channels rescaled between layers, for weights that fill their grid.

Cross-layer equalization of Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction (arXiv 1906.04721). On one grid for a whole tensor
a channel with small weights has few steps. Between two layers whatever the first
divides a channel by, the second may multiply it with.
"""

import copy
from collections.abc import Mapping
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..errors import QuantizeError
from ..plan.plan import Plan
from .layers import Layer, channel_rows

# A pair changes the ranges of those before and behind it.
MAX_SWEEPS = 20
# A sweep that rescales no channel by more than this share is the last.
TOLERANCE = 0.01
# Of a channel in one sweep: what is all but dead stays in the range of floats.
MAX_SCALE = 2.0**12
# The activations behind a normalization: mean plus or minus so many deviations.
DEVIATIONS = 3.0


class Pair(NamedTuple):
    """Two layers; all channels of the first's output are the second's inputs."""

    first: Layer
    second: Layer

    def rescale(self, scale: Tensor) -> None:
        """Divides the first's outputs by ``scale``, (C,), in place."""
        first, second = self
        if first.norm is not None:
            # Its statistics are those of what comes in.
            first.norm.weight.div_(scale)
            first.norm.bias.div_(scale)
        else:
            first.parameter.div_(first.along_channels(scale))
            if first.bias is not None:
                first.bias.div_(scale)
        second.parameter.mul_(second.along_inputs(scale))

    def imbalance(self) -> Tensor:
        """What would give each channel the same range on both sides: (C,).

        A channel's range on the first's side is that of its weights or of its
        activations, whichever takes the larger part of its tensor's: where
        only an offset is large, weights must not be enlarged.
        """
        weight = channel_rows(self.first, self.first.folded()[0]).abs().amax(1)
        reach = torch.maximum(_share(weight), _share(self._activations()))
        needed = input_reach(self.second, self.second.weight, len(reach))
        there = (reach > 0) & (needed > 0)
        log = torch.where(there, (reach / needed).log2() / 2, torch.nan)
        # A factor that all channels have in common makes no difference.
        log = (log - log.nanmean()).nan_to_num(0.0)
        return log.exp2().clamp(1 / MAX_SCALE, MAX_SCALE)

    def _activations(self) -> Tensor:
        """How far the first's outputs are expected to reach: (C,)."""
        first = self.first
        if first.norm is not None:
            return first.norm.bias.abs() + DEVIATIONS * first.norm.weight.abs()
        if first.bias is not None:
            return first.bias.abs()
        return first.weight.new_zeros(first.spec.channels)


def _share(values: Tensor) -> Tensor:
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)


def input_reach(layer: Layer, weight: Tensor, channels: int) -> Tensor:
    """Largest weight that each input channel of a layer is multiplied with: (C,)."""
    magnitude = weight.abs()
    if layer.spec.axis == 1:
        return magnitude.flatten(1).amax(1)
    reach = magnitude.flatten(2).amax(2) if magnitude.dim() > 2 else magnitude
    return reach.unflatten(0, (channels // reach.shape[1], -1)).amax(1).flatten()


def _pairs(plan: Plan, layers: Mapping[str, Layer]) -> list[Pair]:
    return [Pair(layers[first], layers[second]) for first, second in plan.pairs]


@torch.no_grad()
def equalize(plan: Plan, layers: Mapping[str, Layer]) -> None:
    """Equalizes a model in place; its function stays the same up to rounding.

    Args:
        plan (Plan): Says between which layers.
        layers (Mapping[str, Layer]): By weight quantizer.
    """
    pairs = _pairs(plan, layers)
    for _ in range(MAX_SWEEPS):
        scales = []
        for pair in pairs:
            scales.append(pair.imbalance())
            pair.rescale(scales[-1])
        if max(scale.log().abs().max().item() for scale in scales) < TOLERANCE:
            break


@torch.no_grad()
def hostile_twin(
    model: nn.Module,
    plan: Plan,
    octaves: int = 4,
    generator: Optional[torch.Generator] = None,
) -> nn.Module:
    """A model with the same function whose channels have random scales.

    What networks trained on large data look like to a quantizer. Each channel of
    each pair is divided by a random power of two, so outputs differ by nothing.

    Args:
        model (nn.Module): The float model; left as it is.
        plan (Plan): Made with ``equalize=True``.
        octaves (int): Scales are from 2**-octaves to 2**octaves. Defaults to 4.
        generator (torch.Generator, optional): Of the scales, on the CPU.

    Returns:
        nn.Module: A copy.

    Raises:
        QuantizeError: If the plan has no pairs.
    """
    if not plan.pairs:
        raise QuantizeError(
            'the plan has no pairs of layers to rescale between; make it with '
            'quantize.equalize=True'
        )
    twin = copy.deepcopy(model)
    layers = {name: Layer.find(twin, spec) for name, spec in plan.weights.items()}
    for pair in _pairs(plan, layers):
        exponents = torch.randint(
            -octaves,
            octaves + 1,
            (pair.first.spec.channels,),
            generator=generator,
            device='cpu',
        )
        pair.rescale(torch.exp2(exponents.to(pair.first.weight)))
    return twin

"""What weights look like beside their grids."""

from __future__ import annotations

import torch
from torch import Tensor

from ...execute.state import State
from ...quantizers.layers import Layer, channel_rows
from ...quantizers.weight_grids import WeightGrids
from ...quantizers.weights import bias_limits, to_integers
from ...targets.formats import integer_bounds
from ..content import Histogram, WeightReport
from .activation_statistics import count_bins
from .formats import describe_format

CHANNELS_SHOWN = 64
# A bias this near to the end of its width, as a share of it, is at its limit.
NEAR_LIMIT = 0.99


@torch.no_grad()
def weight_reports(state: State, grids: WeightGrids) -> dict[str, WeightReport]:
    """Of all weights, by weight quantizer.

    Args:
        state (State): Of the quantized model.
        grids (WeightGrids): Computed.
    """
    scales = _input_scales(state)
    rows, shapes, bins = [], [], []
    for name, layer in state.layers.items():
        row, reach, counts = _measure(state, name, layer, grids, scales)
        rows.append(row)
        shapes.append(reach)
        bins.append(counts)
    if not rows:
        return {}
    # Read once, whatever the number of layers.
    table, counted = torch.stack(rows).tolist(), torch.stack(bins).tolist()
    reaches = torch.cat(shapes, 1).T.tolist()
    found, start = {}, 0
    for (name, layer), row, part, shown in zip(
        state.layers.items(), table, counted, shapes
    ):
        stop = start + shown.shape[1]
        found[name] = _report(layer, row, part, reaches[start:stop])
        start = stop
    return found


def _input_scales(state: State) -> dict[str, Tensor]:
    """Smallest scale of what each layer reads, ()."""
    activations = state.activations
    found: dict[str, Tensor] = {}
    for step in state.plan.steps.values():
        if step.weight is not None and not step.follows and step.inputs[0]:
            scale = activations.scales[activations.index[step.inputs[0]]]
            known = found.get(step.weight)
            found[step.weight] = scale if known is None else torch.minimum(known, scale)
    return found


def _measure(
    state: State,
    name: str,
    layer: Layer,
    grids: WeightGrids,
    scales: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of a weight, ranges of its channels (2, c), and counts (2, BINS)."""
    fmt, step = layer.spec.format, grids.step(name)
    # As the grids were computed from it, correction of the bias included.
    folding = grids.folding(name)
    folded = layer.scaled(layer.weight * layer.along_channels(folding.factor))
    integers = to_integers(folded, layer.along_channels(step), fmt)
    weights, codes = channel_rows(layer, folded), channel_rows(layer, integers)
    ends = torch.stack([weights.amin(1), weights.amax(1)])
    low, high, reach = ends[0].amin(), ends[1].amax(), ends.abs().amax(0)
    first, last = integer_bounds(fmt)
    real = weights / step[:, None]
    clipped = (real.clamp(first - 0.5, last + 0.5) != real).float().mean()
    largest = codes.abs().amax(1)
    bits = (largest.median() * 2 + 1).log2()
    bias = layer.scaled_bias(folding.bias)
    limit = torch.zeros_like(bits)
    if name in scales:
        most = bias_limits(state.plan.bias_width(name))[1]
        near = bias.abs() >= NEAR_LIMIT * most * step * scales[name]
        limit = near.float().mean()
    zero = (largest == 0).sum().float()
    median = reach.median()
    spread = torch.where(median > 0, reach.amax() / median, 0.0)
    row = torch.stack(
        [low, high, clipped, bits, zero, spread, limit, step.amin(), step.amax()]
    )
    on_grid = codes * step[:, None]
    pair = weights.reshape(-1), on_grid.reshape(-1)
    return row.double(), _joined(ends).double(), count_bins(pair, low, high)


def _joined(ends: Tensor) -> Tensor:
    """Ranges of channels, of neighbours together where there are many: (2, c)."""
    group = -(-ends.shape[1] // CHANNELS_SHOWN)
    if group == 1:
        return ends
    # The last ones are filled up by themselves.
    short = -ends.shape[1] % group
    parts = torch.cat([ends, ends[:, -1:].expand(2, short)], 1).view(2, -1, group)
    return torch.stack([parts[0].amin(1), parts[1].amax(1)])


def _report(
    layer: Layer, row: list[float], counts: list[list[float]], ranges: list[list[float]]
) -> WeightReport:
    low, high, clipped, bits, zero, spread, limit, finest, coarsest = row
    return WeightReport(
        name=layer.spec.name,
        bits=layer.spec.format.bits,
        format=describe_format(layer.spec.format),
        elements=layer.weight.numel(),
        channels=layer.spec.channels,
        scale=[finest, coarsest],
        range=[low, high],
        clipped=clipped,
        bits_used=bits,
        zero_channels=int(zero),
        spread=spread,
        bias_at_limit=limit,
        channel_range=ranges,
        histogram=Histogram(
            low, high, *([int(count) for count in part] for part in counts)
        ),
    )

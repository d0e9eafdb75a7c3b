"""Operators of recurrent layers, which stay in float: ONNX has them as nodes.

ONNX orders the gates of an LSTM as input, output, forget, cell, and those of a GRU as
update, reset, new; PyTorch has input, forget, cell, output and reset, update, new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .translation import SiteWriter, translates

LSTM_ORDER = (0, 3, 1, 2)
GRU_ORDER = (1, 0, 2)


def _ordered(weight: Tensor, order: Sequence[int]) -> Tensor:
    """Rows of a weight (gates * hidden, ...) with the gates in ONNX's order."""
    gates = weight.detach().chunk(len(order))
    return torch.cat([gates[index] for index in order])


def _stacked(
    params: Sequence[Tensor], directions: int, has_biases: bool, order: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weights and biases of a layer's directions, as the node takes them."""
    count = 4 if has_biases else 2
    parts = [params[count * d : count * (d + 1)] for d in range(directions)]
    ordered = [[_ordered(weight, order) for weight in part] for part in parts]
    inputs, hidden = (torch.stack([part[i] for part in ordered]) for i in (0, 1))
    if not has_biases:
        return inputs, hidden, None
    return inputs, hidden, torch.stack([torch.cat(part[2:]) for part in ordered])


def _first(site: SiteWriter, state: Tensor, layer: int, directions: int) -> Any:
    """What a layer starts from; None where it is zero for every image."""
    if site.name_of(state, site.name) is None and not state.any():
        return None
    start = layer * directions
    return site.node(
        'Slice', state, *map(site.ints, ([start], [start + directions], [0]))
    )


def _layers(
    site: SiteWriter,
    kind: str,
    order: Sequence[int],
    x: Tensor,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    **attributes: Any,
) -> list[str]:
    """Writes a node for each layer: output, and the last of each state."""
    directions = 2 if bidirectional else 1
    count = directions * (4 if has_biases else 2)
    if len(params) != count * num_layers:
        raise NotImplementedError('projections')
    if x.dim() != 3:
        raise NotImplementedError('no batch')
    out = site.node('Transpose', x, perm=[1, 0, 2]) if batch_first else site.value(x)
    last: list[list[str]] = []
    for layer in range(num_layers):
        own = params[count * layer : count * (layer + 1)]
        inputs, hidden, bias = _stacked(own, directions, has_biases, order)
        starts = [_first(site, state, layer, directions) for state in states]
        results = site.node(
            kind,
            *(out, inputs, hidden, bias, None, *starts),
            outputs=1 + len(states),
            hidden_size=hidden.shape[-1],
            direction='bidirectional' if bidirectional else 'forward',
            **attributes,
        )
        # (length, directions, batch, hidden) to (length, batch, directions * hidden).
        out = site.node('Transpose', results[0], perm=[0, 2, 1, 3])
        out = site.node('Reshape', out, site.ints([0, 0, -1]))
        last.append(results[1:])
    if batch_first:
        out = site.node('Transpose', out, perm=[1, 0, 2])
    ends = [site.node('Concat', *state, axis=0) for state in zip(*last)]
    return [out, *ends]


def _recurrent(kind: str, order: Sequence[int], **attributes: Any) -> Callable:
    def translate(
        site,
        x,
        states,
        params,
        has_biases,
        num_layers=1,
        dropout=0.0,
        train=False,
        bidirectional=False,
        batch_first=False,
    ):
        if not isinstance(has_biases, bool):
            raise NotImplementedError('a packed sequence')
        if isinstance(states, Tensor):
            states = [states]
        return _layers(
            site,
            kind,
            order,
            x,
            states,
            params,
            has_biases,
            num_layers,
            bidirectional,
            batch_first,
            **attributes,
        )

    return translate


translates('lstm')(_recurrent('LSTM', LSTM_ORDER))
translates('gru')(_recurrent('GRU', GRU_ORDER, linear_before_reset=1))


@translates('lstm_cell')
def _lstm_cell(site, x, states, w_ih, w_hh, b_ih=None, b_hh=None):
    hidden, cell = states
    sums = [site.node('MatMul', x, w_ih.t()), site.node('MatMul', hidden, w_hh.t())]
    gates = site.node('Add', *sums)
    for bias in (b_ih, b_hh):
        gates = gates if bias is None else site.node('Add', gates, bias)
    size = w_hh.shape[1]
    taken, kept, new, given = site.node(
        'Split', gates, site.ints([size] * 4), outputs=4, axis=1
    )
    taken, kept, given = (site.node('Sigmoid', gate) for gate in (taken, kept, given))
    new = site.node('Mul', taken, site.node('Tanh', new))
    cell = site.node('Add', site.node('Mul', kept, cell), new)
    return [site.node('Mul', given, site.node('Tanh', cell)), cell]

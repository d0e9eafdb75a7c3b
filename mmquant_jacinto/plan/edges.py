"""Edges: the first and the last layers, which keep more bits than those between.

Below 8 bits the field leaves them at 8 (LSQ, arXiv 1902.08153; AdaRound, 2004.10568):
there the image's own steps and the detector's scores are, and few of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..config.quantize_config import QuantizeConfig
from ..config.widths import TENSOR_KINDS
from ..record import ops
from .fusion import Chain, Dataflow


def edge_widths(flow: Dataflow, config: QuantizeConfig) -> dict[str, Mapping[str, int]]:
    """Widths of the first layers, the last ones, and of what makes their inputs.

    Args:
        flow (Dataflow): Of the network.
        config (QuantizeConfig): What was asked for.

    Returns:
        Dict[str, Mapping[str, int]]: By call site, as ``quantize.overrides`` has
        them; empty where no width is below ``quantize.edge_bits``.
    """
    asked = {kind: config.bits_of(kind) for kind in TENSOR_KINDS}
    wide = {kind: max(width, config.least_at_edges) for kind, width in asked.items()}
    if wide == asked:
        return {}
    layers = [
        chain for chain in flow.chains.values() if chain.head.kind in ops.WEIGHTED
    ]
    last = _last(flow, layers)
    read = {value for chain in last for value in _groups(flow, chain.head.inputs)}
    makers = [
        chain
        for chain in flow.chains.values()
        if read & _groups(flow, chain.tail.outputs)
    ]
    tensors = {kind: width for kind, width in wide.items() if kind != 'weight'}
    found: dict[str, Mapping[str, int]] = {}
    if wide['activation'] != asked['activation']:
        found = {chain.head.name: tensors for chain in makers}
    for chain in (*_first(flow, layers), *last):
        found[chain.head.name] = wide
    return found


def _groups(flow: Dataflow, values: list) -> set[int]:
    return {flow.groups.find(value) for value in values if value is not None}


def _first(flow: Dataflow, layers: list[Chain]) -> list[Chain]:
    """Layers that read what the first of them reads from outside."""
    outside = _groups(flow, list(flow.graph.region_inputs))
    images: set[int] = set()
    for chain in layers:
        images = outside & _groups(flow, chain.head.inputs)
        if images:
            break
    return [c for c in layers if images & _groups(flow, c.head.inputs)]


def _last(flow: Dataflow, layers: list[Chain]) -> list[Chain]:
    """Layers on whose results no other layer depends."""
    reach: set[int] = set()  # values from which a layer can be reached
    for site in reversed(flow.active):
        multiplies = site.kind in (*ops.WEIGHTED, ops.MATMUL)
        if multiplies or reach.intersection(site.outputs):
            reach.update(value for value in site.inputs if value is not None)
    return [c for c in layers if not reach.intersection(c.tail.outputs)]

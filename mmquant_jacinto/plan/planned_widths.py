"""Planned widths: what a config asks for, against what the target's engine has.

Below 8 bits the first and the last layers keep 8, as in the literature (LSQ, arXiv
1902.08153; AdaRound, 2004.10568): there the image's own steps and the detector's scores
are, and few of the weights. So do the lightest of the others, depthwise ones above all
(PROFIT, 2008.04693, has them as what 4 bits harm most): half of a mobile detector's
layers have a twentieth of its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate, takewhile
from math import prod

from ..config.mixed_precision import KINDS, MixedPrecision
from ..config.quantize_config import QuantizeConfig
from ..config.widths import TENSOR_KINDS
from ..errors import QuantizeError
from ..record import ops
from ..targets.formats import MAX_BITS
from ..targets.rules.table import ANY, Activations, Rules, Weights
from .fusion import Chain, Dataflow
from .plan import ActivationSpec, WeightSpec

# Names of quantizers that an error tells.
_SHOWN = 3
# What is narrower than that goes there first, then.
LEVELS = (8, 16)
# By kind of tensor, the row that says what integers there are of it.
_ROWS = {'activation': (Activations, ANY), 'weight': (Weights, 'Conv')}


def widest(rules: Rules) -> dict[str, int]:
    """Most bits of the integers that an engine has, by kind of tensor.

    Args:
        rules (Rules): Of the target.
    """
    rows = {kind: rules.row(*names) for kind, names in _ROWS.items()}
    return {kind: MAX_BITS if row is None else row.bits for kind, row in rows.items()}


def levels_above(config: QuantizeConfig, rules: Rules) -> list[int]:
    """Widths that a search may raise to, those of the config left out.

    Args:
        config (QuantizeConfig): ``bits``, and the candidates of a budget of time.
        rules (Rules): Of the target.

    Raises:
        QuantizeError: If a budget of time leaves none.
    """
    bits = config.mixed_precision
    by_time = isinstance(bits, MixedPrecision) and config.keeps_latency
    kinds: tuple[str, ...] = KINDS
    levels: tuple[int, ...] = LEVELS
    if isinstance(bits, MixedPrecision) and by_time:
        kinds, levels = tuple(bits.kinds or ()), bits.widths
    most = max(widest(rules)[kind] for kind in kinds)
    least = min(config.bits_of(kind) for kind in kinds)
    found = [level for level in levels if least < level <= most]
    if by_time and not found:
        raise QuantizeError(
            f'quantize.mixed_precision.candidates={levels} has nothing to raise to: '
            f'{" and ".join(kinds)} start at {least} bits (quantize.bits), and '
            f'quantize.target={config.target!r} has integers of up to {most}; use '
            'narrower bits, or another target'
        )
    return found


def check_widths(
    rules: Rules,
    config: QuantizeConfig,
    activations: Iterable[ActivationSpec],
    weights: Mapping[str, WeightSpec],
) -> None:
    """Refuses widths that the engine has no integers of, before anything runs.

    Args:
        rules (Rules): Of the target.
        config (QuantizeConfig): What was asked for.
        activations (Iterable[ActivationSpec]): Of the plan.
        weights (Mapping[str, WeightSpec]): Of the plan.

    Raises:
        QuantizeError: If there are any; it names the first tensors.
    """
    specs: dict[str, Iterable[ActivationSpec | WeightSpec]] = {
        'activation': activations,
        'weight': weights.values(),
    }
    for kind, most in widest(rules).items():
        wide = [spec.name for spec in specs[kind] if spec.format.bits > most]
        if not wide:
            continue
        source = rules.row(*_ROWS[kind]).source
        others = f' and {len(wide) - _SHOWN} more' if len(wide) > _SHOWN else ''
        raise QuantizeError(
            f'quantize.bits asks for more than {most} bits in '
            f'{", ".join(wide[:_SHOWN])}{others}, and quantize.target='
            f'{config.target!r} has {kind}s of up to {most} ({source}); use '
            f'{most} bits or fewer there, or another target'
        )


def edge_widths(flow: Dataflow, config: QuantizeConfig) -> dict[str, Mapping[str, int]]:
    """Widths of the first layers, the last ones, and of what makes their inputs.

    Args:
        flow (Dataflow): Of the network.
        config (QuantizeConfig): What was asked for.

    Returns:
        Dict[str, Mapping[str, int]]: By call site, as ``quantize.overrides`` has
        them; empty where no width is below ``quantize.edge_bits``, or where no layer
        lies between the first and the last, for which it was asked.
    """
    asked = {kind: config.bits_of(kind) for kind in TENSOR_KINDS}
    wide = {kind: max(width, config.least_at_edges) for kind, width in asked.items()}
    if wide == asked:
        return {}
    layers = [
        chain for chain in flow.chains.values() if chain.head.kind in ops.WEIGHTED
    ]
    first, last = _first(flow, layers), _last(flow, layers)
    if {id(chain) for chain in (*first, *last)} >= {id(chain) for chain in layers}:
        return {}
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
    for chain in (*first, *last):
        found[chain.head.name] = wide
    return found


def light_widths(
    layers: Iterable[Chain],
    shapes: Mapping[str, tuple[int, ...]],
    config: QuantizeConfig,
    edges: Mapping[str, Mapping[str, int]],
) -> dict[str, Mapping[str, int]]:
    """Widths of layers whose weights are so few that they cost next to nothing.

    Args:
        layers (Iterable[Chain]): That are quantized.
        shapes (Mapping[str, tuple]): Of all parameters, by name.
        config (QuantizeConfig): What was asked for; ``light_share``: the part of all
            weights that those of such layers may be together.
        edges (Mapping[str, Mapping[str, int]]): What :func:`edge_widths` gave; these
            layers take no part of that share.

    Returns:
        Dict[str, Mapping[str, int]]: By call site, as ``quantize.overrides`` has
        them, of the lightest layers; empty where no weight is below
        ``quantize.edge_bits``.
    """
    if config.bits_of('weight') >= config.least_at_edges:
        return {}
    calls: dict[tuple, list[str]] = {}
    for chain in layers:
        site = chain.head
        if site.weight is not None:
            calls.setdefault((site.weight, site.rows), []).append(site.name)
    sizes = {key: _size(shapes[key[0]], key[1]) for key in calls}
    most = config.light_share * sum(sizes.values())
    inner = [
        key
        for key, names in calls.items()
        if not any('weight' in edges.get(name, ()) for name in names)
    ]
    inner.sort(key=sizes.__getitem__)
    sums = accumulate(map(sizes.__getitem__, inner))
    taken = takewhile(lambda item: item[1] <= most, zip(inner, sums))
    wide = dict(weight=config.least_at_edges)
    return {name: wide for key, _ in taken for name in calls[key]}


def _size(shape: tuple[int, ...], rows: tuple[int, int] | None) -> int:
    """Elements of a weight, or of the part of it that ``rows`` says."""
    return prod(shape) if rows is None else prod(shape[1:]) * (rows[1] - rows[0])


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

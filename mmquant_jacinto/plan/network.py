"""Network: what of a recorded graph is quantized, less what the loss alone calls."""

from __future__ import annotations

from dataclasses import replace

from ..record.graph import Graph
from .overrides import Overrides


def network_of(graph: Graph, overrides: Overrides) -> tuple[Graph, dict[str, str]]:
    """A graph without the regions that only the loss calls.

    Args:
        graph (Graph): What was recorded.
        overrides (Overrides): May ask for such a region, by a width.

    Returns:
        Tuple[Graph, Dict[str, str]]: The graph, and why each region that is not in
        it stays in float.
    """
    asked_for = {
        graph.region_of[site.name]
        for site in graph.sites.values()
        # Asked of all: a pattern that matches one is used.
        if overrides.find(site.module) not in (None, False)
    }
    left_out = [name for name in graph.only_loss if name not in asked_for]
    if not left_out:
        return graph, {}
    sites = {
        name: site
        for name, site in graph.sites.items()
        if graph.region_of[name] not in left_out
    }
    calls = {
        call: (region, reads)
        for call, (region, reads) in graph.calls.items()
        if region not in left_out
    }
    made = {value for site in sites.values() for value in site.outputs}
    inputs: dict[int, list[tuple[str, int]]] = {}
    for call, (_, reads) in calls.items():
        for leaf, values in reads.items():
            for value in values:
                # What such a region makes enters from outside now.
                if value in graph.region_inputs or value not in made | graph.hidden:
                    inputs.setdefault(value, []).append((call, leaf))
    regions = [name for name in graph.regions if name not in left_out]
    reasons = {
        name: (
            'only the loss calls it, which is no part of the network; '
            f'quantize.overrides={{{name!r}: 8}} quantizes it'
        )
        for name in left_out
        # Where inference calls the parts of a module by themselves, they are there.
        if not any(other.startswith(f'{name}.') for other in regions)
    }
    return replace(graph, regions=regions, sites=sites, region_inputs=inputs), reasons

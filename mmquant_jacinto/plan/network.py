"""Network: what of a recorded graph is quantized, and what of a plan leaves it."""

from __future__ import annotations

from dataclasses import replace

from ..record.graph import Graph
from .overrides import Overrides
from .plan import OUTPUT, OVERRIDES, Plan, wide_name


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


def output_quantizers(plan: Plan) -> set[str]:
    """Quantizers of what leaves the network: of what no quantized call reads.

    Heads that end in a call that is not quantized (``sigmoid``) have no output
    quantizer; what is read by nothing else stands for it. So does what layers read
    that ``quantize.overrides`` leaves in float.
    """
    found = last_quantizers(plan)
    if found and OVERRIDES not in plan.in_float.values():
        return found
    # One that is in float has its inputs there all the same.
    steps = [step for name, step in plan.steps.items() if name not in plan.in_float]
    read = {name for step in steps for name in step.inputs if name != step.output}
    # A wide sum is read by the name of a narrower grid.
    read |= {wide_name(name) for name in read if name}
    return found | {step.output for step in steps if step.output} - read


def last_quantizers(plan: Plan) -> set[str]:
    """Quantizers of the kind ``'output'``."""
    return {spec.name for spec in plan.activations if spec.kind == OUTPUT}


def last_layers(plan: Plan) -> set[str]:
    """Layers whose results leave the network, by weight quantizer.

    Also through what has no weights: a sigmoid, an addition, an average.
    """
    chain_of = {name: step.chain for name, step in plan.steps.items()}
    outputs: dict[str | None, set[str]] = {}
    for step in plan.steps.values():
        outputs.setdefault(step.output, set()).add(step.chain)
    makers: dict[str, set[str]] = {}  # chains by what reads them
    weights: dict[str, str] = {}
    for step in plan.steps.values():
        if step.weight is not None:
            weights[step.chain] = step.weight
        if step.joins is not None:
            makers.setdefault(chain_of[step.joins], set()).add(step.chain)
        for name in filter(None, step.inputs):
            made = outputs.get(wide_name(name), set())
            makers.setdefault(step.chain, set()).update(made)
    ends = output_quantizers(plan)
    waiting = [step.chain for step in plan.steps.values() if step.output in ends]
    found, seen = set(), set(waiting)
    while waiting:
        chain = waiting.pop()
        if chain in weights:
            found.add(weights[chain])
            continue
        more = makers.get(chain, set()) - seen
        seen |= more
        waiting += more
    return found


def feature_quantizers(plan: Plan) -> set[str]:
    """Quantizers of what layers make and read: what is computed on the way."""
    steps = plan.steps.values()
    made = {step.output for step in steps if step.output and step.last}
    read = {step.inputs[0] for step in steps if step.weight is not None and step.inputs}
    return (made & {wide_name(name) for name in read if name}) - output_quantizers(plan)

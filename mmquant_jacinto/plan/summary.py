"""What is quantized, for people: a short summary, and the whole plan."""

from ..targets.preset import FINE_BITS
from .plan import Plan


def summarize(plan: Plan) -> str:
    """One paragraph: regions, weights, activations, what stays in float.

    Args:
        plan (Plan): The plan.

    Returns:
        str: Several lines.
    """
    weights = _count(spec.format.bits for spec in plan.weights.values())
    kinds: dict[str, list[int]] = {}
    for spec in plan.activations:
        kinds.setdefault(spec.kind, []).append(spec.format.bits)
    activations = '; '.join(f'{kind}: {_count(bits)}' for kind, bits in kinds.items())
    folded = len({spec.norm for spec in plan.weights.values() if spec.norm})
    computed = sum(step.weight_format is not None for step in plan.steps.values())
    if computed:
        weights += f', {computed} computed in each pass'
    if plan.undecided:
        weights += f', {len(plan.undecided)} to be chosen by mixed_precision'
    lines = [
        f'Quantization for {plan.config["target"]}:',
        f'  regions      {", ".join(name or "(model)" for name in plan.regions)}',
        f'  weights      {weights}, {folded} batch normalizations folded',
        f'  activations  {activations}',
        f'  ranges       {_observers(plan)}',
        f'  call sites   {len(plan.steps)}',
    ]
    if plan.pairs:
        lines.append(f'  equalized    {len(plan.pairs)} pairs of layers')
    if plan.in_float:
        lines.append(f'  in float     {len(plan.in_float)} layers')
        lines += [f'    {name}: {reason}' for name, reason in plan.in_float.items()]
    else:
        lines.append('  in float     no layer')
    return '\n'.join(lines)


def _observers(plan: Plan) -> str:
    """How ranges are found: what ``quantize`` says, or what its default is here."""
    config = plan.config
    found = config['observer']
    if 'fine_observer' in config:
        found += f', above {FINE_BITS} bits {config["fine_observer"]}'
    return f'{found}; weights: {config.get("weight_observer", "minmax")}'


def describe(plan: Plan) -> str:
    """The whole plan as text: one line per call site."""
    formats = {spec.name: spec for spec in plan.activations}
    lines = [summarize(plan), '']
    for call, leaves in plan.inputs.items():
        lines += [
            f'{call}  argument {leaf} -> {_activation(formats[name])}'
            for leaf, name in leaves.items()
        ]
    for name, step in plan.steps.items():
        line = f'{name}  {step.kind}'
        if step.follows:
            line += f'  fused into {step.chain}'
        elif step.weight:
            spec = plan.weights[step.weight]
            line += f'  weight {spec.name}: int{spec.format.bits}' + (
                ' per channel' if spec.format.per_channel else ''
            )
        elif step.weight_format:
            line += f'  computed weight: int{step.weight_format.bits}'
        for index, quantizer in step.entries:
            line += f'  operand {index} -> {_activation(formats[quantizer])}'
        if step.last and step.output:
            line += f' -> {_activation(formats[step.output])}'
        elif step.last and step.joins:
            line += f'  one with {step.joins}'
        lines.append(line)
    return '\n'.join(lines)


def _activation(spec) -> str:
    return f'{spec.kind} {spec.name}: {spec.format.bits} bits'


def _count(bits) -> str:
    bits = list(bits)
    return (
        ', '.join(
            f'{bits.count(width)} x {width} bits'
            for width in sorted(set(bits), reverse=True)
        )
        or 'none'
    )

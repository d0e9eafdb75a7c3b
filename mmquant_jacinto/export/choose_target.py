"""The target of a file, if its engine can compute what the plan says."""

from ..errors import QuantizeError
from ..plan.plan import Plan
from ..registry import QUANT_TARGETS
from ..targets.target import Target, get_file_target, get_preset


def choose_target(name: str, plan: Plan) -> Target:
    """The target called ``name``, if it can compute what the plan says.

    Raises:
        QuantizeError: If there is no such target, or if its engine lacks the
            plan's number formats, or scales for each channel.
    """
    target = get_file_target(name)
    preset = plan.config['target']
    if not target.takes(get_preset(preset)):
        fitting = [
            other
            for other, cls in QUANT_TARGETS.module_dict.items()
            if target.takes(cls.preset)
        ]
        raise QuantizeError(
            f'the model was quantized with quantize.target={preset!r}, whose numbers '
            f'--target {name} cannot compute with; quantize it with one of '
            + ', '.join(map(repr, fitting))
        )
    most = target.widest(preset)
    for spec in plan.specs:
        if spec.format.bits > most:
            raise QuantizeError(
                f'{spec.name} has {spec.format.bits} bits, and --target {name} takes '
                f'up to {most}; set quantize.bits or quantize.overrides'
            )
    target.check(plan.config)
    return target

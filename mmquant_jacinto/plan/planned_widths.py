"""Planned widths: what a config asks for, against what the target's engine has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError
from ..targets.formats import MAX_BITS
from ..targets.rules.table import ANY, Activations, Rules, Weights
from .plan import ActivationSpec, WeightSpec

# Names of quantizers that an error tells.
_SHOWN = 3
# By kind of tensor, the row that says what integers there are of it.
_ROWS = {'activation': (Activations, ANY), 'weight': (Weights, 'Conv')}


def widest(rules: Rules) -> dict[str, int]:
    """Most bits of the integers that an engine has, by kind of tensor.

    Args:
        rules (Rules): Of the target.
    """
    rows = {kind: rules.row(*names) for kind, names in _ROWS.items()}
    return {kind: MAX_BITS if row is None else row.bits for kind, row in rows.items()}


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

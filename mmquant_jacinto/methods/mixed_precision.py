"""Mixed precision: a width for each weight, from what it costs and what it spoils.

Calibration measures how much noise each weight puts into the network's outputs
at each candidate width (:mod:`sensitivity`), and chooses the widths with the
least sum that a budget can pay for (:mod:`bit_budget`), as in HAWQ-V2 (arXiv
1911.03852) and AdaQuant (arXiv 2006.10518). Noise of several layers is taken to
add up, which holds to first order where rounding errors are independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, cast

import torch
from mmengine.fileio import get_text

from ..config.mixed_precision import FILE, MixedPrecision
from ..errors import QuantizeError
from ..execute.corrections.conditioning import condition_once
from ..execute.quantization import Quantization
from ..plan.plan import Plan
from ..targets.formats import check_bits
from .budgets.bit_budget import spend
from .sensitivity import Probe, Sensitivity

BITS_PER_MEGABYTE = 8e6


@dataclass(frozen=True)
class ChosenWidth:
    """What was chosen for one weight.

    Args:
        elements (int): Of the weight.
        bits (int): Its width.
        noise (Dict[int, float]): By candidate width, the noise to signal that it
            puts into the network's outputs; empty where ``overrides`` decided.
    """

    elements: int
    bits: int
    noise: Mapping[int, float]


@dataclass(frozen=True)
class BitTable:
    """The widths of all weights of a model, and why.

    Args:
        settings (MixedPrecision): Budget and candidates.
        layers (Dict[str, ChosenWidth]): By weight quantizer.
    """

    settings: MixedPrecision
    layers: Mapping[str, ChosenWidth]

    @property
    def total_bits(self) -> int:
        """int: Of all quantized weights."""
        return sum(layer.elements * layer.bits for layer in self.layers.values())

    @property
    def average_bits(self) -> float:
        """float: Mean width of an element."""
        return self.total_bits / sum(layer.elements for layer in self.layers.values())

    @property
    def model_size(self) -> float:
        """float: Of all quantized weights, in megabytes."""
        return self.total_bits / BITS_PER_MEGABYTE

    def __str__(self) -> str:
        widths = self.settings.widths
        size = max(len(name) for name in self.layers)
        lines = [
            f'Mixed precision: {self.average_bits:.3f} bits on average, '
            f'{self.model_size:.3f} MB; noise to signal in the outputs by width:',
            f'  {"layer":{size}}  elements  bits'
            + ''.join(f'  {f"at {width}":>8}' for width in widths),
        ]
        for name, layer in self.layers.items():
            lines.append(
                f'  {name:{size}}  {layer.elements:8}  {layer.bits:4}'
                + ''.join(f'  {layer.noise[width]:8.1e}' for width in layer.noise)
            )
        return '\n'.join(lines)

    def to_json(self) -> str:
        """Serializes it; :func:`with_found_bits` reads the widths back."""
        return json.dumps(
            dict(
                settings=self.settings.to_dict(),
                average_bits=self.average_bits,
                model_size=self.model_size,
                layers={name: asdict(layer) for name, layer in self.layers.items()},
            ),
            indent=1,
        )


class BitSearch:
    """Chooses the undecided widths of a quantized model.

    Its state has to be the same on all processes; each calls :meth:`probe` on
    images of its own and, once, :meth:`finish`.

    Args:
        quantization (Quantization): Of the model, in evaluation mode; the widths
            follow from its weights, and from its ranges where a bias limits them.
        config (MixedPrecision): Budget and candidates.
    """

    def __init__(self, quantization: Quantization, config: MixedPrecision) -> None:
        condition_once(quantization)
        quantization.set_phase(Probe)
        self.quantization = quantization
        self.config = config
        self.sensitivity = Sensitivity(
            quantization, quantization.plan.undecided, config.widths
        )

    def probe(self, run: Callable[[], Any], seed: int) -> None:
        """Measures one pass.

        Args:
            run (Callable): Runs the model once.
            seed (int): Of the random projection; another one in each pass.
        """
        quantization = self.quantization
        behaviour = cast(Probe, quantization.executor.behaviour)
        device = quantization.bias_correction.device
        behaviour.generator = torch.Generator(device).manual_seed(seed)
        with torch.enable_grad():
            run()
        self.sensitivity.add(behaviour.gradients())

    def finish(self) -> BitTable:
        """Chooses the widths, and gives them to the model."""
        quantization, plan = self.quantization, self.quantization.plan
        elements = {
            name: layer.weight.numel() for name, layer in quantization.layers.items()
        }
        noise = self.sensitivity.result()
        widths = choose_bits(plan, elements, noise, self.config)
        quantization.choose_weight_bits(widths)
        layers = {
            name: ChosenWidth(
                elements[name],
                spec.format.bits,
                dict(zip(self.config.widths, noise.get(name, ()))),
            )
            for name, spec in quantization.plan.weights.items()
        }
        return BitTable(self.config, layers)


def choose_bits(
    plan: Plan,
    elements: Mapping[str, int],
    noise: Mapping[str, list[float]],
    config: MixedPrecision,
) -> dict[str, int]:
    """The widths with the least noise within the budget.

    Args:
        plan (Plan): Names what is undecided, and has the other widths.
        elements (Mapping[str, int]): Of all weights, by name.
        noise (Mapping[str, list]): By undecided weight, at each candidate.
        config (MixedPrecision): Budget and candidates.

    Returns:
        Dict[str, int]: Width of each undecided weight.
    """
    names, widths = plan.undecided, config.widths
    costs = [[elements[name] * width for width in widths] for name in names]
    budget = _budget(config, elements) - _decided_bits(plan, elements)
    picks = spend(costs, [noise[name] for name in names], budget)
    return {name: widths[pick] for name, pick in zip(names, picks)}


def weight_elements(
    plan: Plan, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Number of elements of each weight of a plan, from its parameters' shapes."""
    elements = {}
    for name, spec in plan.weights.items():
        shape = shapes[spec.weight]
        if spec.rows is not None:
            shape = (spec.rows[1] - spec.rows[0], *shape[1:])
        elements[name] = math.prod(shape)
    return elements


def check_budget(
    plan: Plan, elements: Mapping[str, int], config: MixedPrecision
) -> None:
    """Checks that a budget can be met, and leaves a choice.

    Raises:
        QuantizeError: If not; it says what can be reached.
    """
    if not plan.undecided:
        raise QuantizeError(
            'quantize.mixed_precision has no width to choose: quantize.overrides '
            'gives one to every weight'
        )
    decided = _decided_bits(plan, elements)
    free = sum(elements[name] for name in plan.undecided)
    least, most = (decided + free * config.widths[end] for end in (0, -1))
    if least <= _budget(config, elements) <= most:
        return
    per_unit: float
    if config.average_bits is not None:
        given, unit = f'average_bits={config.average_bits!r}', 'bits on average'
        per_unit = sum(elements.values())
    else:
        given, unit = f'model_size={config.model_size!r}', 'megabytes'
        per_unit = BITS_PER_MEGABYTE
    low = math.ceil(1000 * least / per_unit) / 1000
    high = math.floor(1000 * most / per_unit) / 1000
    raise QuantizeError(
        f'quantize.mixed_precision.{given} is out of reach: with '
        f'candidates={config.widths} the weights of this model take from '
        f'{low:g} to {high:g} {unit}'
    )


def _budget(config: MixedPrecision, elements: Mapping[str, int]) -> int:
    """What all quantized weights together may take, in bits."""
    if config.average_bits is not None:
        return math.floor(config.average_bits * sum(elements.values()))
    return math.floor((config.model_size or 0) * BITS_PER_MEGABYTE)


def _decided_bits(plan: Plan, elements: Mapping[str, int]) -> int:
    return sum(
        elements[name] * spec.format.bits
        for name, spec in plan.weights.items()
        if name not in plan.undecided
    )


def with_found_bits(plan: Plan, path: str) -> Plan:
    """A plan with the widths that an earlier calibration chose.

    Args:
        plan (Plan): Has undecided widths; the others stay.
        path (str): File that :meth:`BitTable.to_json` went to.

    Returns:
        Plan: With all widths decided.

    Raises:
        QuantizeError: If the file cannot be read, or is of another model.
    """
    key = f'quantize.mixed_precision={path!r}'
    try:
        found = json.loads(get_text(path))
        settings = MixedPrecision(**found['settings'])
        widths = {
            name: check_bits(f'bits of {name}', item['bits'])
            for name, item in found['layers'].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise QuantizeError(
            f'{key} cannot be read ({type(error).__name__}: {error}); give the '
            f"{FILE} that a calibration with mode='ptq' left in its work_dir"
        ) from error
    missing = [name for name in plan.undecided if name not in widths]
    if missing:
        raise QuantizeError(
            f'{key} was chosen for another model: it has no width for {missing[0]}'
        )
    chosen = {name: widths[name] for name in plan.undecided}
    return replace(
        plan.with_weight_bits(chosen),
        undecided=(),
        config={**plan.config, 'mixed_precision': settings.to_dict()},
    )

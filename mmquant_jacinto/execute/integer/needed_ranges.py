"""Needed: what a test does about a quantizer that has no range."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmengine.logging import print_log
from torch import Tensor

from ...errors import QuantizeError
from ...plan.plan import Step, module_of, wide_name
from ...quantizers.activations import ActivationQuantizers
from ...record import ops


class NeededRanges:
    """Refuses layers without ranges, and says what else runs in float for want of one.

    Neither calibration nor training reached it: a head behind proposals, where there
    were none; what a head computes of its outputs in evaluation alone.

    Args:
        activations (ActivationQuantizers): The ranges.
    """

    def __init__(self, activations: ActivationQuantizers) -> None:
        self.activations = activations
        self._noted: set[str] = set()
        self._new: list[str] = []

    def check(self, quantizer: str | None, x: Tensor) -> None:
        """Checks what a layer or a product reads or gives.

        Raises:
            QuantizeError: If it has a quantizer without a range.
        """
        if quantizer is None or self.activations.has_range(quantizer) or not x.numel():
            return
        name = wide_name(quantizer)
        module = module_of(name)
        way_out = f" or set quantize.overrides={{'{module}': False}}" if module else ''
        raise QuantizeError(
            f'{name} has no range: neither calibration nor training reached it, and '
            'this test does; calibrate on images that reach it (a head behind '
            f'proposals needs objects){way_out}'
        )

    def check_inputs(self, step: Step, tensors: Sequence[Tensor]) -> None:
        """Checks what a quantized layer, or a product, reads.

        Where it was measured itself, it read something else then: what evaluation
        computes otherwise than training is noted only.
        """
        is_known = step.output is not None and self.activations.has_range(step.output)
        if _multiplies(step) and not is_known:
            for quantizer, x in zip(step.inputs, tensors):
                self.check(quantizer, x)

    def check_output(self, step: Step, x: Tensor) -> None:
        """Checks what a quantized layer, or a product, gives."""
        if _multiplies(step) or step.weight is not None:
            self.check(step.output, x)

    def note(self, quantizer: str | None, x: Tensor) -> None:
        """Takes note of a tensor that stays in float, if it has a quantizer."""
        if quantizer is not None and quantizer not in self._noted and x.numel():
            self._noted.add(quantizer)
            self._new.append(quantizer)

    def report(self) -> None:
        """Says once what stays in float for want of a range."""
        names, self._new = self._new, []
        if names:
            print_log(
                'Neither calibration nor training reached these, and this test does; '
                f'they stay in float: {", ".join(names)}',
                'current',
                logging.WARNING,
            )


def _multiplies(step: Step) -> bool:
    return step.kind == ops.MATMUL or (
        step.kind in ops.WEIGHTED
        and (step.weight is not None or step.weight_format is not None)
    )

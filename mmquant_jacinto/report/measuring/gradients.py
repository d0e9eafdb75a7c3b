"""Gradients: how much the outputs feel an error in each tensor.

Of a random projection of the outputs, ``v . y`` with independent standard normal ``v``,
as in :mod:`~mmquant_jacinto.methods.sensitivity`. An error ``e`` in a tensor with the
gradient ``g`` moves the outputs by ``E[(g . e)^2]``. Errors of elements are taken to be
independent, so that it is ``sum(g^2 e^2)``: one projection of one image will do, where
the square of a single product would vary as much as it is large.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from ...execute.state import State
from ...methods.network_outputs import FloatOutputs
from ...methods.sensitivity import Probe
from ...plan.plan import Step
from ...record.ops import Op
from .signals import Key, sample


class GradientProbe(Probe):
    """Runs in float and keeps what the steps give, for the gradients of these.

    Args:
        state (State): Of the quantized model, with ranges.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._steps: list[tuple[Key, Tensor]] = []
        self._runs: dict[str, int] = {}

    def begin(self) -> None:
        super().begin()
        self._steps, self._runs = [], {}

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        return self._keep(quantizer, x)

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        # The weights are the model's own.
        return FloatOutputs.call(self, step, op, func, args, kwargs)

    def after_norm(self, step: Step, x: Any) -> Any:
        counts = step.output is not None or step.weight is not None
        if step.last and counts and isinstance(x, Tensor):
            x = self._keep(step.chain, x)
        return super().after_norm(step, x)

    def _keep(self, name: str, x: Tensor) -> Tensor:
        if self._is_replay or not x.numel() or not x.is_floating_point():
            return x
        count = self._runs.get(name, 0)
        self._runs[name] = count + 1
        x = x if x.requires_grad else x.detach().requires_grad_()
        self._steps.append(((name, count), x))
        # What goes on is another tensor: a later call may overwrite it.
        return x.clone()

    def take(self) -> dict[Key, Tensor]:
        """Samples of the gradients of the last pass, by run of a step."""
        projections = [self._project(*item) for item in self.outputs.take()]
        total = [item for item in projections if item.requires_grad]
        kept, self._steps = self._steps, []
        if not total or not kept:
            return {}
        found = torch.autograd.grad(
            torch.stack(total).sum(), [x for _, x in kept], allow_unused=True
        )
        return {
            key: sample(grad) for (key, _), grad in zip(kept, found) if grad is not None
        }


def probe_gradients(
    probe: GradientProbe, run: Callable[[GradientProbe], Any], seed: int
) -> dict[Key, Tensor]:
    """Gradients of one pass.

    Args:
        probe (GradientProbe): What measures.
        run (Callable): Runs the model once, with the behaviour that it is given.
        seed (int): Of the random projection; another one in each pass.
    """
    device = probe.state.bias_correction.device
    probe.generator = torch.Generator(device).manual_seed(seed)
    with torch.enable_grad():
        run(probe)
    return probe.take()

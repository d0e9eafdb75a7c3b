"""Outputs: what leaves a network, as its plan knows it."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from ..execute.behaviour import Behaviour
from ..execute.state import State
from ..plan.network import feature_quantizers, last_quantizers, output_quantizers
from ..plan.plan import Plan, Step
from ..record import ops
from ..record.ops import Op


class Outputs:
    """What leaves the network, in the order in which it does.

    Args:
        plan (Plan): Of the network.
        features (bool): Whether what layers read on the way is kept as well. Defaults
            to False.
    """

    def __init__(self, plan: Plan, features: bool = False) -> None:
        outputs = output_quantizers(plan)
        self.features = feature_quantizers(plan) if features else set()
        self.names = outputs | self.features
        self._ends = last_quantizers(plan) or outputs
        self.kept: list[tuple[str, Tensor]] = []

    def add(self, step: Step, x: Any) -> Any:
        """Keeps an output; what goes on has no graph: decoding may do what it likes.

        But for what other outputs follow from.
        """
        if not self.keep(step, x):
            return x
        return (x.detach() if step.output in self._ends else x).clone()

    def keep(self, step: Step, x: Any) -> bool:
        """Keeps what a step gives, if it is an output; says whether it is one."""
        is_output = step.last and step.output in self.names
        if not is_output or not isinstance(x, Tensor) or not x.numel():
            return False
        self.kept.append((step.output, x))
        return True

    def take(self) -> list[tuple[str, Tensor]]:
        """Quantizer and tensor of what was kept, since last taken."""
        kept, self.kept = self.kept, []
        return kept


class FloatOutputs(Behaviour):
    """Runs in float, and keeps what leaves the network.

    Args:
        state (State): Of the quantized model.
        features (bool): See :class:`Outputs`.
    """

    def __init__(self, state: State, features: bool = False) -> None:
        self.outputs = Outputs(state.plan, features)

    def begin(self) -> None:
        self.outputs.take()

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        out = func(*args, **kwargs)
        return out if step.kind in (ops.PASS, ops.CAT) else self.after_norm(step, out)

    def after_norm(self, step: Step, x: Any) -> Any:
        return self.outputs.add(step, x)

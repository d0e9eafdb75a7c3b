"""Behaviour: what is done at a step of the plan."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable

from torch import Tensor, nn

from ..plan.plan import Step
from ..record.ops import Op


class Behaviour:
    """What happens at a step; the base class runs the float model.

    Methods get the original call and return its result.

    Attributes:
        instead (Mapping[Callable, Callable]): What is called in a region in place of
            functions that no step is for.
    """

    instead: Mapping[Callable, Callable] = {}

    def begin(self) -> None:
        """A pass of the root module starts."""

    def end(self) -> None:
        """A pass of the root module ends."""

    def discard(self) -> None:
        """Another behaviour takes its place, maybe in a pass that was broken off."""

    def enter_region(self) -> None:
        """A region starts."""

    def leave_region(self) -> None:
        """A region ends, also by an exception."""

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        """A tensor enters a region from outside."""
        return x

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        """A function is called at a step."""
        return func(*args, **kwargs)

    def copy(self, x: Tensor) -> Tensor:
        """What a call in place may overwrite for ``x``, whose memory others share."""
        return x.clone()

    def overwrite(self, x: Tensor, result: Tensor) -> None:
        """Writes what such a call gave to where the others read it."""
        x.copy_(result)

    def folds(self, step: Step, norm: nn.Module) -> bool:
        """Whether the normalization at a step is part of the weights."""
        return False

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        """A batch normalization module has run (or was folded)."""
        return x

    def remember(self) -> Any:
        """What it takes to compute a part of the present pass again."""
        return None

    def replay(self, memory: Any) -> AbstractContextManager:
        """A context that computes as when ``memory`` was made, and measures nothing."""
        return nullcontext()

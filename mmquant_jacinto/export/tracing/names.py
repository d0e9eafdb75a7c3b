"""Names: what the tensors of a running model are called in the graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ...execute.integer.carried_integers import integers_of
from ...record.memory import unseen_version
from ...targets.target import Target
from ..graph.calls import all_tensors, origin
from ..graph.graph_writer import GraphWriter
from ..operators.translation import SiteWriter
from .views import read_part, write_part

# (graph, name in it, why it has none, version) on a tensor
TAG = '_mmquant_onnx'
_UNMARKED = (None, None, None, None)


class Names:
    """Names of tensors, which travel on them.

    Args:
        root (nn.Module): The model, whose parameters have names of their own.
        target (Target): What the file is for.

    Attributes:
        writer (GraphWriter): The graph so far.
        clips (bool): Whether ranges become clips, in a float model.
    """

    clips: bool

    def __init__(self, root: nn.Module, target: Target) -> None:
        self.target = target
        self.writer = GraphWriter()
        self.parameters = {id(p): name for name, p in root.named_parameters()}
        self.pauses = 0
        # What made tensors of a shape gave, by the tensor's identity.
        self._made: dict[int, tuple[Tensor, int, Tensor]] = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which calls are an engine's own, not the model's."""
        self.pauses += 1
        try:
            yield
        finally:
            self.pauses -= 1

    def add_input(self, x: Tensor, name: str) -> None:
        """Declares an input of the graph."""
        self.name(x, self.writer.add_input(name, x))

    def name(self, x: Tensor, name: str) -> None:
        self.mark(x, name, None)

    def lose(self, x: Tensor, reason: str) -> None:
        """The graph cannot have this tensor; an error only if it needs it."""
        self.mark(x, None, reason)

    def mark(self, x: Tensor, name: str | None, reason: str | None) -> None:
        """What a tensor is in the graph, as :meth:`tag` gave it for another."""
        setattr(x, TAG, (self, name, reason, unseen_version(x)))

    def name_of(self, x: Any) -> str | None:
        return self.tag(x)[0]

    def tag(self, x: Any) -> tuple[str | None, str | None]:
        trace, name, reason, version = getattr(x, TAG, _UNMARKED)
        if trace is not self:
            return None, None
        if version != unseen_version(x):
            return self._renew(x, name, reason)
        return name, reason

    def _renew(
        self, x: Tensor, name: str | None, reason: str | None
    ) -> tuple[str | None, str | None]:
        """What a tensor is that was written to through another view."""
        base = _base(x)
        if base is not None and self._is_marked(base):
            name, reason = self.tag(base)
            if name is not None:
                name, reason = self._through(read_part, base, x, x, name)
        self.mark(x, name, reason)
        return name, reason

    def mark_alike(self, x: Tensor, other: Tensor) -> None:
        """A tensor becomes in the graph what another one is."""
        if self._is_marked(other):
            self.mark(x, *self.tag(other))

    def keep(self, x: Tensor) -> None:
        """Names a constant as it is, before a call overwrites it."""
        if not self.knows(x):
            with self.paused():
                self.name(x, self.writer.constant(x.clone()))

    def wrote(self, x: Tensor, site: str) -> None:
        """A call has changed a tensor, and so what that is a view of."""
        base = _base(x)
        if base is None or not (self._is_marked(x) or self._is_marked(base)):
            return
        if not self._is_marked(base):
            reason = f'{site.rpartition("/")[2]} writes into a part of it'
            self.lose(base, f'{reason} {origin(site)}')
            return
        name, reason = getattr(base, TAG)[1:3]
        reason = reason or self.tag(x)[1]
        if reason is None and (name is not None or self.name_of(x) is not None):
            self.mark(base, name, None)
            name, reason = self._through(write_part, base, x, base, site)
        self.mark(base, name, reason)

    def _through(
        self, write: Callable, base: Tensor, view: Tensor, out: Tensor, site: str
    ) -> tuple[str | None, str | None]:
        try:
            with self.paused():
                writer = SiteWriter(self.writer, f'{site}:view', out, self.operand)
                return write(writer, base, view), None
        except NotImplementedError as error:
            return None, f'the exporter lacks {error} {origin(site)}'

    def reason_of(self, args: tuple, kwargs: dict) -> str | None:
        """Why the graph lacks an operand of a call; None where it lacks none."""
        reasons = (self.tag(x)[1] for x in all_tensors(args, kwargs))
        return next((reason for reason in reasons if reason), None)

    def knows(self, x: Any) -> bool:
        """Whether a tensor follows from the graph's inputs."""
        return self.tag(x) != (None, None)

    def fix(self, x: Any) -> None:
        """No image changes the tensors in this."""
        for leaf in tree_flatten(x)[0]:
            if isinstance(leaf, Tensor):
                self.mark(leaf, None, None)

    def made(self, x: Any) -> None:
        """Functions have made the tensors in this of a shape alone."""
        self.fix(x)
        with torch._C.DisableTorchFunction():
            for leaf in tree_flatten(x)[0]:
                if isinstance(leaf, Tensor):
                    self._made[id(leaf)] = leaf, unseen_version(leaf), leaf.clone()

    def is_fixed(self, x: Tensor) -> bool:
        is_constant = self._is_marked(x) and not self.knows(x) and self._is_as_made(x)
        return id(x) in self.parameters or is_constant

    def _is_as_made(self, x: Tensor) -> bool:
        """Whether nothing has filled a tensor unseen, as extensions fill their own."""
        _, version, content = self._made.get(id(x), (None, -1, x))
        with torch._C.DisableTorchFunction():
            return version != unseen_version(x) or torch.equal(
                x.nan_to_num(), content.nan_to_num()
            )

    def _is_marked(self, x: Tensor) -> bool:
        return getattr(x, TAG, _UNMARKED)[0] is self

    def operand(self, x: Tensor, site: str) -> str | None:
        """Name of an operand of a site; a parameter gets a constant of its name.

        What no image changes but a quantizer has put on a grid is stored as the
        integers it is computed with: an engine has integer kernels for those alone.
        Where the target takes no zero point of a constant, it is stored as the real
        numbers that they stand for.
        """
        name = self.name_of(x)
        if name is not None:
            return name
        if id(x) in self.parameters:
            return self.writer.constant(x, self.parameters[id(x)])
        known = integers_of(x)
        if known is None or self.clips:
            return None
        grid, integers = known
        storage = self.target.activation_storage(grid)
        if storage.zero_point and self.target.rules.has_symmetric_constants:
            return None
        stored = self.writer.integers(
            integers.cpu().numpy() + storage.zero_point, storage, f'{site}:constant:int'
        )
        return self.writer.dequantize(stored, grid, storage, f'{site}:constant')


def _base(x: Tensor) -> Tensor | None:
    with torch._C.DisableTorchFunction():
        return x._base

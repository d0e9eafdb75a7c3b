"""Same work: which runs of a module are a former one again, however many there are.

A flipped image, the next crop, the next step of a decoder: the same weights do the same
work, so they share ranges and call sites. A head that each level of a pyramid runs
through does not: what it reads was made by other layers, or has another size.

What a tensor is, is said by the functions and modules that made it of what entered,
without numbers of calls: its *work*. Two runs of a module in one caller are the same
if what they read is of the same work. Of a recurrence, whose every step reads what the
former one gave, the first step is one run and all others are another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from . import ops
from .call_tree import CallNode, CallTracker, Frame
from .graph import Site
from .inference import mode_of
from .recurrence import VIEWS, Recurrence


class Operand(NamedTuple):
    """What a run of a module, or a call of a function, reads.

    Args:
        value (int, optional): Number of the value; None for a constant, and for what
            enters the first region that it reaches.
        work (int): Number of its work.
        picked (int): The same, with no regard to which element an index picks.
        shape (tuple): Its shape.
        enters (bool): Whether it comes from outside all regions.
        is_raw (bool): Whether it enters before any region has run: an image, of
            whatever size, and no feature map.
    """

    value: int | None
    work: int = -1
    picked: int = -1
    shape: tuple[int, ...] = ()
    enters: bool = False
    is_raw: bool = False


class WorkFrame(Frame):
    """A running module, with what its calls have read.

    Attributes:
        seen (Dict[str, Sequence[Operand]]): By name of the call.
        begin (CallNode, optional): Where it has gone back to last.
    """

    __slots__ = ('seen', 'begin')

    def __init__(self, node: CallNode, module: nn.Module | None) -> None:
        super().__init__(node, module)
        self.clear()

    def clear(self) -> None:
        super().clear()
        self.seen: dict[str, Sequence[Operand]] = {}
        self.begin: CallNode | None = None


class SameWork:
    """Finds the runs of modules that are former ones again.

    It decides as the model runs. Where that turns out wrong (other calls follow, or
    another pass has it otherwise), the passes have to be recorded anew.

    Args:
        told_apart (Iterable[str]): Runs that are known to be no former ones.
        kept (Mapping[str, Set[str]]): By caller, what goes on counting when a run
            is a former one again: modules, and functions behind a slash.

    Attributes:
        repeats (Dict[str, str]): Run to the former one that it is again.
        callers (Dict[str, str]): The run to what calls it.
    """

    def __init__(
        self, told_apart: Iterable[str] = (), kept: dict[str, set[str]] | None = None
    ) -> None:
        self.told_apart = set(told_apart)
        self.kept: dict[str, set[str]] = defaultdict(set, kept or {})
        self.repeats: dict[str, str] = {}
        self.callers: dict[str, str] = {}
        self._apart: set[str] = set()
        self._numbers: dict[Any, int] = {}
        self._works: dict[int, tuple[int, int]] = {}
        self._producers: dict[int, Site] = {}
        self._norms: dict[int, str] = {}  # of a value that one reads
        self._unfolded: set[str] = set()
        self._has_failed = False

    def settle(self) -> bool:
        """Whether all that was decided holds; takes note of what does not."""
        # One pass has it so, another one otherwise.
        wrong = self._apart & self.repeats.keys()
        # A layer is folded with each of its normalizations.
        wrong |= {
            run
            for run, begin in self.repeats.items()
            for layer in self._unfolded
            if layer.startswith(tuple(begin + sign for sign in './>'))
        }
        self.told_apart |= wrong
        return not (wrong or self._has_failed)

    def found(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """See :attr:`~mmquant_jacinto.record.graph.Graph.repeats`."""
        return {
            run: (begin, tuple(sorted(self.kept[self.callers[run]])))
            for run, begin in self.repeats.items()
        }

    # --- works

    def _number(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def works(self, value: int) -> tuple[int, int]:
        """Work of a value, and the same whichever element an index picks."""
        if value not in self._works:
            self._works[value] = (self._number(value),) * 2
        return self._works[value]

    def note(self, site: Site, args: tuple = ()) -> None:
        """Takes note of what a call has made."""
        inputs = [(None, None) if v is None else self.works(v) for v in site.inputs]
        strict, loose = zip(*inputs) if inputs else ((), ())
        if site.kind == ops.NORM and site.inputs[0] in self._producers:
            layer = site.inputs[0]
            if self._norms.setdefault(layer, site.name) != site.name:
                self._unfolded.add(self._producers[layer].name)
        call = site.module, site.op, site.weight, site.bias, site.rows
        for index, value in enumerate(site.outputs):
            # As first made: a further run may make it of itself.
            if self._producers.setdefault(value, site) is not site:
                continue
            if site.op in VIEWS and site.inputs[0] is not None:
                picked = _picked(site.op, args, index)
                work = strict[0]
                if picked is not None:
                    work = self._number(('picked', picked, work))
                self._works[value] = work, loose[0]
            else:
                self._works[value] = (
                    self._number((call, strict, index)),
                    self._number((call, loose, index)),
                )

    def maker(self, value: int | None) -> Site | None:
        """The call that has made a value; None for what has entered."""
        return None if value is None else self._producers.get(value)

    # --- calls

    def call(self, frame: WorkFrame, called: str, name: str, reads: Sequence) -> bool:
        """Notes a call of a function or a run of a module.

        Returns:
            bool: Whether it is known, because the caller has gone back.
        """
        known = frame.seen.get(name)
        if known is None:
            frame.seen[name] = reads
            return False
        if not self._alike(known, reads, frame.begin):
            self.kept[frame.node.name].add(called)
            self._has_failed = True
        return True

    def former_run(
        self, frame: WorkFrame, module: str, index: int, reads: Sequence[Operand]
    ) -> CallNode | None:
        """The run that the ``index``-th one of a module is again, if it is one."""
        node = frame.node.child(module, index)
        if node.name in frame.seen or node.name in self.told_apart:
            return None
        for former in range(index):
            begin = frame.node.child(module, former)
            known = frame.seen.get(begin.name)
            if known is not None and self._alike(known, reads, begin):
                self.repeats[node.name] = begin.name
                self.callers[node.name] = frame.node.name
                frame.begin = begin
                return begin
        if index:
            self._apart.add(node.name)
        return None

    def _alike(
        self,
        known: Sequence[Operand],
        reads: Sequence[Operand],
        begin: CallNode | None,
    ) -> bool:
        """Whether two calls read the same."""
        if len(known) != len(reads):
            return False
        recurs = picks = False
        for old, new in zip(known, reads):
            same_size = old.shape[1:] == new.shape[1:]
            if old.enters and new.enters:
                if not (old.is_raw or same_size):
                    return False
            elif None in (old.value, new.value):
                if old.value is not new.value:
                    return False
            elif old.value == new.value or (same_size and old.work == new.work):
                continue
            elif same_size and old.picked == new.picked:
                picks = True
            elif self._recurs(old, new, begin):
                recurs = True
            else:
                return False
        # The next step of a sequence, but not the next level of a list.
        return recurs or not picks

    def _recurs(self, old: Operand, new: Operand, begin: CallNode | None) -> bool:
        """Whether both follow alike from former runs of a module."""
        first, second = (self._producers.get(item.value or 0) for item in (old, new))
        if (
            begin is None
            or first is None
            or second is None
            or (first.op, first.module) != (second.op, second.module)
            or len(old.shape) != len(new.shape)
            or (len(old.shape) > 3 and old.shape[2:] != new.shape[2:])
        ):
            return False
        return Recurrence(self.maker, self.works, begin).has_alike(old.value, new.value)


def _picked(op: str, args: tuple, index: int) -> str | None:
    """Which elements of an axis a view is, if it is no range of them."""
    if op == 'unbind':
        return str(index)
    if op == 'select':
        return str(args[1:])
    if op != 'getitem' or len(args) < 2:
        return None
    places = args[1] if isinstance(args[1], tuple) else (args[1],)
    numbers = [(axis, item) for axis, item in enumerate(places) if type(item) is int]
    return str(numbers) if numbers else None


class WorkTracker(CallTracker):
    """Gives further runs that do the work of former ones the names of those.

    Args:
        root (nn.Module): The model.
        work (SameWork): What finds them.
        read (Callable): Tells what a tensor is: an :class:`Operand`.
        **hooks: Of :class:`~mmquant_jacinto.record.call_tree.CallTracker`.

    Attributes:
        mode (Any): What the last pass of a model of MMEngine was asked for.
    """

    mode: Any = None

    def __init__(self, root: nn.Module, work: SameWork, read: Any, **hooks: Any):
        super().__init__(root, **hooks)
        self.work, self.read = work, read
        self.here.stack[0] = WorkFrame(self.tree, None)
        self._weighted = {
            m for m in root.modules() if any(True for _ in m.parameters())
        }

    def frame_of(self, node: CallNode, module: nn.Module) -> Frame:
        return WorkFrame(node, module)

    def enter_root(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        self.mode = mode_of(module, args, kwargs)
        return super().enter_root(module, args, kwargs)

    def find(self, module: nn.Module, args: tuple, kwargs: dict) -> CallNode:
        caller: Any = self.frame
        index, name = caller.next(module), self.names[module]
        node = caller.node.child(name, index)
        leaves = tree_flatten((args, kwargs))[0]
        reads = [self.read(x) for x in leaves if is_activation(x)]
        if module in self._weighted:
            begin = self.work.former_run(caller, name, index, reads)
            if begin is not None:
                node.kept = self.counted(self.work.kept[caller.node.name])
                caller.turn(node, begin)
                node = begin
            else:
                caller.turn(node, node)
        self.work.call(caller, name, node.name, reads)
        return node


def is_activation(item: Any) -> bool:
    return (
        isinstance(item, Tensor)
        and item.is_floating_point()
        and not isinstance(item, nn.Parameter)
    )

"""Plan tracker: names for calls as a plan has them, where modules run more often."""

from collections.abc import Iterable
from typing import Callable

from torch import nn

from ..plan.plan import Plan
from ..record.call_tree import CallNode, CallTracker


class PlanTracker(CallTracker):
    """Sends a run that does what a former one did back to that one.

    In training a module may also run more often than in the recorded passes (a
    semi-supervised student, a second view): it is the same function again, and goes
    to the last recorded run.

    Args:
        root (nn.Module): The model.
        plan (Plan): What names the recorded runs.
        **hooks: Of :class:`~mmquant_jacinto.record.call_tree.CallTracker`.
    """

    def __init__(self, root: nn.Module, plan: Plan, **hooks: Callable) -> None:
        super().__init__(root, **hooks)
        self.known = _node_names(
            [*plan.steps, *(f'{call}/input' for call in plan.inputs)]
        )
        self._repeats = plan.repeats
        # Their parts, at least, may run again unforeseen, and all that follows with
        # them. Elsewhere it would be too many to take note of.
        self._outermost = {'', *plan.regions}
        self._weighted = {
            name
            for module, name in self.names.items()
            if any(True for _ in module.parameters())
        }
        self._begins = {repeat.begin for repeat in plan.repeats.values()}

    def resolve(self, parent: CallNode, module: str, invocation: int) -> CallNode:
        node = parent.child(module, invocation)
        repeat = self._repeats.get(node.name)
        former = [parent.child(module, index) for index in range(invocation)]
        if repeat is not None:
            node.loop = next(run for run in former if run.name == repeat.begin)
            node.kept = self.counted(repeat.kept)
        elif former and node.name not in self.known:
            recorded = [run for run in former if run.name in self.known]
            node.loop = (recorded or former)[-1]
        elif node.name in self._begins or (
            parent.module in self._outermost and module in self._weighted
        ):
            node.loop = node
        return node


def _node_names(names: Iterable[str]) -> set[str]:
    known = set()
    for name in names:
        node = name.rpartition('/')[0]
        known.add(node)
        known.update(node[:i] for i, char in enumerate(node) if char in '.>')
    return known

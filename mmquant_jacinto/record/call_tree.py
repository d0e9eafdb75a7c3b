"""Names for calls: where in the model, and which of its calls, this one is.

A *call site* is named by the chain of modules that are running, the number
of each one's invocation within its caller's invocation, and the number of
the function among the calls of the same function there::

    backbone.layer1.0.relu#2/relu      third run of that module in its block
    backbone.layer1.0/add              out += identity
    bbox_head.cls_convs.0#4.conv/conv2d    a head at the fifth level
    decoder>bbox_head.reg_branches.0/linear    borrowed by another module

Names therefore do not depend on what other modules did before. Recording
and executing share this module and nothing else.

A module that runs again for the same work (the next crop, the flipped image) is no
further call but the former one again: its caller goes back to where that one began,
and whatever follows has the former names too. So names do not depend on how often.
"""

import threading
from collections.abc import Container, Iterable
from typing import Any, Callable, Optional

from torch import nn
from torch.utils.hooks import RemovableHandle


class CallNode:
    """A module's invocation; its children and sites are found once."""

    __slots__ = ('name', 'module', 'children', 'sites', 'runs', 'loop', 'kept')

    def __init__(self, name: str, module: str) -> None:
        self.name = name
        self.module = module
        self.children: dict[tuple[str, int], CallNode] = {}
        self.sites: dict[tuple[str, int], Any] = {}
        # What `resolve` gave, by module object: it is asked at every call.
        self.runs: dict[tuple[nn.Module, int], CallNode] = {}
        # Where a further run goes back to; itself, if it is what they go back to.
        self.loop: Optional[CallNode] = None
        # What its caller counts on all the same: modules, names of functions.
        self.kept: frozenset[Any] = frozenset()

    def child(self, module: str, invocation: int) -> 'CallNode':
        """The node of the ``invocation``-th run of ``module`` in this one."""
        key = (module, invocation)
        node = self.children.get(key)
        if node is None:
            prefix = self.module + '.'
            if not self.name:
                name = module
            elif module.startswith(prefix):
                name = f'{self.name}.{module[len(prefix) :]}'
            else:
                name = f'{self.name}>{module}'
            if invocation:
                name += f'#{invocation}'
            # Another thread may have been faster.
            node = self.children.setdefault(key, CallNode(name, module))
        return node

    def site_name(self, op: str, index: int) -> str:
        """The name of the ``index``-th call of ``op`` in this invocation."""
        return f'{self.name}/{op}' + (f'#{index}' if index else '')


class Frame:
    """A running module: its node, and what it has called so far."""

    __slots__ = ('node', 'counts', 'module', 'marks')

    def __init__(self, node: CallNode, module: Optional[nn.Module]) -> None:
        self.node = node
        self.counts: dict[Any, int] = {}
        self.module = module
        # What was counted when a run began that others go back to.
        self.marks: dict[CallNode, dict[Any, int]] = {}

    def next(self, called: Any) -> int:
        """Counts a call of a module, or of a function by its name, from 0."""
        index = self.counts.get(called, 0)
        self.counts[called] = index + 1
        return index

    def turn(self, node: CallNode, begin: CallNode) -> CallNode:
        """Goes back to where ``begin`` started, if ``node`` is that run again."""
        if node is begin:
            self.marks[begin] = dict(self.counts)
        else:
            past = self.marks.get(begin, self.counts)
            for called in self.counts:
                if called not in node.kept:
                    self.counts[called] = past.get(called, 0)
        return begin

    def clear(self) -> None:
        """Counts everything from 0 again."""
        self.counts.clear()
        self.marks.clear()

    def copy(self) -> 'Frame':
        """The frame as it is now, to count on from twice."""
        frame = Frame(self.node, self.module)
        frame.counts = dict(self.counts)
        frame.marks = dict(self.marks)
        return frame


class _Here(threading.local):
    """Where a pass is; each thread has a pass of its own.

    Args:
        tree (CallNode): The caller of the outermost modules.

    Attributes:
        stack (List[Frame]): Of the running modules.
        watched (Container[nn.Module], optional): See :class:`CallTracker`.
    """

    def __init__(self, tree: CallNode) -> None:
        self.tree = tree
        self.stack: list[Frame] = [Frame(tree, None)]
        self.watched: Optional[Container[nn.Module]] = None

    def __reduce__(self) -> tuple:
        # A copy of a model (EMA) runs no pass yet.
        return type(self), (self.tree,)


class CallTracker:
    """Keeps the stack of running modules by hooks on each of them.

    Args:
        root (nn.Module): The model; it is the caller of all regions.
        on_enter (Callable, optional): Called with (module, args, kwargs)
            after a module's frame is there; may return new (args, kwargs).
        on_exit (Callable, optional): Called with (module, output) before the
            frame goes; may return another output. After an exception in the
            module it is called too, with None as output.
        on_root (Callable, optional): Called with True when the root starts
            and with False when it ends.

    Attributes:
        here (_Here): Where this thread's pass is. While its ``watched`` is set,
            ``on_enter`` and ``on_exit`` are called for these modules alone.
    """

    def __init__(
        self,
        root: nn.Module,
        on_enter: Optional[Callable] = None,
        on_exit: Optional[Callable] = None,
        on_root: Optional[Callable] = None,
    ) -> None:
        self.tree = CallNode('', '')
        self.names = {module: name for name, module in root.named_modules()}
        self.on_enter, self.on_exit, self.on_root = on_enter, on_exit, on_root
        self.here = _Here(self.tree)
        self.handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Puts the hooks on the model; another thread may be running parts of it."""
        root = next(iter(self.names))
        for module in self.names:
            enter, leave = self._enter, self._leave
            if module is root:
                enter, leave = self.enter_root, self._leave_root
            self.handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                # Hooks of others see what the next module will see.
                module.register_forward_hook(leave, prepend=True, always_call=True),
            ]

    @property
    def frame(self) -> Frame:
        """Frame: The innermost running module's."""
        return self.here.stack[-1]

    def resolve(self, parent: CallNode, module: str, invocation: int) -> CallNode:
        """The node that an invocation belongs to; a place to redirect it."""
        return parent.child(module, invocation)

    def find(self, module: nn.Module, args: tuple, kwargs: dict) -> CallNode:
        """The node of the run of a module that starts now, which it counts."""
        caller = self.here.stack[-1]
        key = module, caller.next(module)
        node = caller.node.runs.get(key)
        if node is None:
            node = self.resolve(caller.node, self.names[module], key[1])
            caller.node.runs[key] = node
        return node if node.loop is None else caller.turn(node, node.loop)

    def counted(self, names: Iterable[str]) -> frozenset[Any]:
        """What a frame counts by, of modules by name and functions behind a slash."""
        modules = {name: module for module, name in self.names.items()}
        return frozenset(
            name[1:] if name.startswith('/') else modules[name] for name in names
        )

    def frame_of(self, node: CallNode, module: nn.Module) -> Frame:
        """A new frame."""
        return Frame(node, module)

    def restart(self) -> None:
        """Counts the invocations of the outermost modules from 0 again."""
        self.here.stack[0].clear()

    def remove(self) -> None:
        """Takes all hooks off the model."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        node = self.find(module, args, kwargs)
        here = self.here
        here.stack.append(self.frame_of(node, module))
        if self.on_enter is not None and (
            here.watched is None or module in here.watched
        ):
            return self.on_enter(module, args, kwargs)
        return None

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> Any:
        result, here = None, self.here
        if here.stack[-1].module is not module:
            # It began before the hooks were there, in another thread's first pass.
            return None
        if self.on_exit is not None and (
            here.watched is None or module in here.watched
        ):
            result = self.on_exit(module, output)
        here.stack.pop()
        return result

    def enter_root(self, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        """What the root's pre-hook does, for a pass that began before it was there."""
        # A keyboard interrupt runs no hooks, and leaves frames behind.
        del self.here.stack[1:]
        self.restart()
        if self.on_root is not None:
            self.on_root(True)
        if self.on_enter is not None:
            return self.on_enter(module, args, kwargs)
        return None

    def _leave_root(self, module: nn.Module, args: tuple, output: Any) -> Any:
        result = None
        if self.on_exit is not None:
            result = self.on_exit(module, output)
        if self.on_root is not None:
            self.on_root(False)
        return result

"""Trace: one pass of the integer model writes the graph that computes it.

The executor runs the plan as in a test; what it computes at each step is written
down as ONNX nodes, with QuantizeLinear and DequantizeLinear where the plan has a
quantizer. Calls that the plan does not know are written as they are. So the file
follows from the very steps that a test computes, names come from the call sites,
and nothing depends on how a version of PyTorch traces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from ...execute.behaviour import Behaviour
from ...execute.integer.carried_integers import tag_of
from ...execute.state import State
from ...record.ops import OPS
from ...targets.grid import Bounds, Grid
from ...targets.target import CLIP, Target
from ..graph.calls import CONSTANTS, READS, all_tensors, is_float, origin, written_by
from ..operators.table import TRANSLATIONS
from ..operators.translation import SiteWriter
from .late_reads import LateReads
from .names import Names
from .region_calls import RegionCall, missing_function

# What a translation raises on arguments that it was not written for.
_UNFIT = (NotImplementedError, TypeError, ValueError, KeyError, AttributeError)
# What translations call the arguments that torch has several names for.
_KEYWORDS = {
    **{'axis': 'dim', 'keepdims': 'keepdim'},
    **dict.fromkeys(('input', 'self'), 'x'),
    **dict.fromkeys(('other', 'mat2'), 'y'),
}


class Trace(Names, TorchFunctionMode):
    """Writes what a model computes while it runs, also between its regions.

    Args:
        root (nn.Module): The quantized model.
        state (State): Its quantization.
        target (Target): What the file is for.
        keeps_values (bool): Whether :attr:`values` is filled.

    Attributes:
        writer (GraphWriter): The graph so far.
        values (Dict[str, Tensor]): What the quantized tensors were, by name.
        calls (List[RegionCall]): The regions in the graph.
        skipped (List[str]): Regions that read nothing the graph knows.
        needed (Set[str]): What regions that are left out read of the graph, by name.
        late (LateReads): What is read behind the last region.
    """

    def __init__(
        self, root: nn.Module, state: State, target: Target, keeps_values: bool
    ) -> None:
        TorchFunctionMode.__init__(self)
        Names.__init__(self, root, target)
        self._keeps_values = keeps_values
        self.root, self.state = root, state
        # Ranges as clips, in a float model.
        self.clips = target.form(state.plan.config['target']) == CLIP
        self.values: dict[str, Tensor] = {}
        # Of ranges that became clips: call site, and the grid.
        self.clipped: dict[str, tuple[str, Grid]] = {}
        self.calls: list[RegionCall] = []
        self.skipped: list[str] = []
        self.needed: set[str] = set()
        self.late = LateReads()
        self.tracker = state.executor.tracker
        self._open: list[RegionCall] = []  # the region that runs
        # A number of the image has become one of the program, and may be anywhere.
        self._is_read = False

    @contextmanager
    def running(self, writing: Behaviour) -> Iterator[None]:
        """Context in which the model's calls are written.

        Args:
            writing (Behaviour): What is done at the plan's steps.
        """
        executor = self.state.executor
        names = {executor.root.get_submodule(r): r for r in self.state.plan.regions}
        handles = []
        for module in self.root.modules():
            if module in names:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda module, args, kwargs: self._enter_region(
                            names[module], args, kwargs
                        ),
                        with_kwargs=True,
                    )
                )
            handles.append(
                module.register_forward_hook(self._leave_module, with_kwargs=True)
            )
        behaviour = executor.behaviour
        executor.behaviour = writing
        try:
            with torch.no_grad(), self:
                yield
        finally:
            executor.behaviour = behaviour
            for handle in handles:
                handle.remove()

    # --- regions

    def _enter_region(self, name: str, args: tuple, kwargs: dict) -> None:
        if self._open or self.pauses:
            return
        leaves = all_tensors(args, kwargs)
        inputs = [self.name_of(x) for x in leaves if self.name_of(x)]
        # Of constants alone, it is a constant itself.
        is_fixed = bool(leaves) and all(map(self.is_fixed, leaves))
        self._open.append(RegionCall(name, inputs, is_fixed))
        if not inputs:
            self.pauses += 1
            if not is_fixed:
                self._skip(name)
        self._open_module = self.root.get_submodule(name)

    def _leave_module(
        self, module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> None:
        if self._open and module is self._open_module:
            self._leave_region(output)
        if self.pauses or not self._open:
            return
        # Autograd functions of extensions are seen by nobody.
        given = tree_flatten((args, kwargs))[0]
        if any(self.knows(x) for x in given):
            for x in tree_flatten(output)[0]:
                if is_float(x) and not self.knows(x) and x.grad_fn is None:
                    if id(x) not in self.parameters:
                        self.lose(
                            x,
                            f'{self.tracker.names.get(module, "")} '
                            f'({type(module).__name__}) computes it by a function '
                            'that is not a torch function',
                        )

    def _leave_region(self, output: Any) -> None:
        call = self._open.pop()
        leaves = tree_flatten(output)[0]
        if not call.inputs:
            self.pauses -= 1
            if call.is_fixed:
                self.fix(output)
                return
            for x in leaves:
                if isinstance(x, Tensor):
                    self.lose(x, f'{call.region} is not in the graph')
            return
        for x in leaves:
            name, reason = self.tag(x)
            call.names.append(name)
            call.reasons.append(reason)
        if call.is_left_out:
            reason = next(reason for reason in call.reasons if reason)
            print_log(f'{call.region} is not in the file: {reason}', 'current')
            self._skip(call.region)
            self.needed.update(call.inputs)
            return
        # What comes behind may write into it.
        call.output = tree_map(self._copy, output)
        self.calls.append(call)
        self.late.restart()

    def _skip(self, region: str) -> None:
        if region not in self.skipped:
            self.skipped.append(region)

    def _copy(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        with self.paused():
            copy = x.clone()
        if self.knows(x):
            self.mark(copy, *self.tag(x))
        return copy

    # --- calls

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.pauses:
            return func(*args, **kwargs)
        written = written_by(func, args, kwargs)
        before = [(self.knows(x), self.is_fixed(x)) for x in all_tensors(args, kwargs)]
        if written is not None and any(known for known, _ in before):
            self.keep(written)
        tag = self.tag(written)
        out = func(*args, **kwargs)
        if written is not None and self._is_marked(written):
            # It keeps its name for the nodes below.
            self.mark(written, *tag)
        op = OPS.get(func)
        name = op.name if op else func.__name__.strip('_')
        site = self.tracker.frame.node.name + '/' + name
        if any(known for known, _ in before):
            self.late.read(map(self.name_of, all_tensors(args, kwargs)), out)
            self._is_read |= func.__name__ in READS
            values = all_tensors(args[1:], kwargs)
            if name in CONSTANTS and not any(map(self.knows, values)):
                self.made(out)
            else:
                self.write(name, site, args, kwargs, out)
            self.late.wrote(out, self.name_of)
        elif before:
            self.fix_like(out, all_tensors(args, kwargs))
        elif name in CONSTANTS and not self._is_read:
            self.made(out)
        if written is not None:
            self.wrote(written, site)
        return out

    def fix_like(self, out: Any, given: list[Tensor]) -> None:
        """What follows from constants alone is one."""
        if all(map(self.is_fixed, given)) and not self._is_read:
            self.fix(out)

    def write(self, op: str, site: str, args: tuple, kwargs: dict, out: Any) -> None:
        """Writes a call as it is and names its results."""
        leaves = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if op == 'setitem':
            leaves = [args[0]]
        if not leaves:
            return
        reason = self.reason_of(args, kwargs)
        names: Any = None
        if reason is None:
            names, reason = self._translate(op, site, args, kwargs, out)
        if reason is not None:
            for x in leaves:
                self.lose(x, reason)
            return
        for x, name in zip(leaves, [names] if isinstance(names, str) else names):
            if name is None:
                lacks = f'the exporter lacks this result of {op!r}'
                self.lose(x, f'{lacks} {origin(site)}')
            else:
                self.name(x, name)

    def _translate(
        self, op: str, site: str, args: tuple, kwargs: dict, out: Any
    ) -> tuple[Any, str | None]:
        translate = TRANSLATIONS.get(op)
        if op == 'get' and isinstance(out, Tensor) and out.shape == args[0].shape:
            return self.name_of(args[0]), None
        if translate is None:
            return None, self._missing(op, '', site, args)
        kwargs = {
            _KEYWORDS.get(key, key): value
            for key, value in kwargs.items()
            if key != 'out'
        }
        count = len(self.writer.nodes)
        try:
            writer = SiteWriter(self.writer, site, out, self.operand)
            return translate(writer, *args, **kwargs), None
        except _UNFIT as error:
            del self.writer.nodes[count:]
            what = f' with these arguments ({error})'
            return None, self._missing(op, what, site, args)

    def _missing(self, op: str, what: str, site: str, args: tuple) -> str:
        reason = f'the exporter lacks the function {op!r}{what} {origin(site)}'
        # Indices that no image changes choose no detections.
        chooses = op != 'getitem' or any(map(self.knows, all_tensors(args[1:], {})))
        return missing_function(op, chooses and not self._open, reason)

    # --- quantized tensors

    def emit(self, site: str, name: str, x: Tensor, grid: Grid, clip: Bounds) -> str:
        """Puts a value of the graph on a grid.

        Args:
            site (str): What to call the result.
            name (str): The value, in real numbers.
            x (Tensor): What it is in this pass, on the grid.
            grid (Grid): Where to.
            clip (tuple, optional): Real bounds of a fused activation.

        Returns:
            str: Name of the value on the grid, in real numbers.
        """
        known = self.writer.quantized.get(name)
        if known is not None and known[1] == grid and clip is None:
            return name
        low, high = grid.integer_limits(clip)
        writer = self.writer
        if self.clips:
            bounds = [np.float32(k * grid.scale) for k in (low, high)]
            result = writer.node(
                'Clip', [name, *(writer.constant(b, 'range') for b in bounds)], site
            )
            self.clipped[result] = site, grid
            return self._keep(result, x)
        storage = self.target.activation_storage(grid)
        implied = (
            low <= storage.low - storage.zero_point
            and high >= storage.high - storage.zero_point
        )
        on_integers = self.target.integer_clips and storage.dtype.endswith('int8')
        # From one grid to the next: ONNX Runtime would merge the two roundings, also
        # over what it finds to do nothing.
        before = writer.grid_behind(name) if on_integers else None
        directly = before is not None and (name in writer.quantized or before != grid)
        if not implied and not on_integers:
            name = self._bound(site, name, (low, high), grid, clip)
        integers = writer.quantize(name, grid, storage, site)
        if directly or (not implied and on_integers):
            bounds = [np.asarray(k + storage.zero_point) for k in (low, high)]
            integers = writer.node(
                'Clip',
                [integers, *(writer.integers(b, storage, 'limit') for b in bounds)],
                f'{site}:clip',
            )
        result = writer.dequantize(integers, grid, storage, f'{site}:out')
        return self._keep(result, x)

    def _bound(
        self, site: str, name: str, steps: tuple[int, int], grid: Grid, clip: Bounds
    ) -> str:
        """A value within some steps of a grid, before it is put there."""
        writer, storage = self.writer, self.target.activation_storage(grid)
        if clip == (0.0, None) and steps[1] >= storage.high - storage.zero_point:
            # The type does the rest, and what a layer is fused with is ReLU.
            return writer.node('Relu', [name], f'{site}:clip')
        bounds = [np.float32(k * grid.scale) for k in steps]
        constants = [writer.constant(b, 'range') for b in bounds]
        return writer.node('Clip', [name, *constants], f'{site}:clip')

    def _keep(self, name: str, x: Tensor) -> str:
        if self._keeps_values:
            grid, integers = tag_of(x) or (None, None)
            # A copy, as the model may write into it; of channels that have factors
            # the file has what is divided.
            self.values[name] = x.clone() if integers is None else integers * grid.scale
        return name

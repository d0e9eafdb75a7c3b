"""Trace: one pass of the integer model writes the graph that computes it.

The executor runs the plan as in a test; what it computes at each step is written
down as ONNX nodes, with QuantizeLinear and DequantizeLinear where the plan has a
quantizer. Calls that the plan does not know are written as they are. So the file
follows from the very steps that a test computes, names come from the call sites,
and nothing depends on how a version of PyTorch traces.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from .. import ops
from ..integer import Integer, grid_of
from ..kernels import Bounds, Grid
from ..ops import OPS, Op
from ..plan import Step
from ..simulate import State
from .graph_writer import GraphWriter
from .operators import TRANSLATIONS, SiteWriter
from .targets import (
    CLIP,
    Storage,
    Target,
    activation_storage,
    form_of,
    weight_storage,
)

_TAG = '_mmquant_onnx'  # (trace, name in the graph, why it has none) on a tensor


@dataclass
class RegionCall:
    """One run of a region that the graph contains.

    Args:
        region (str): Name of the module.
        inputs (List[str]): What it read, by name in the graph.
        output (Any): What it returned.
        names (List[str | None]): Of the leaves of the output.
        reasons (List[str | None]): Why a leaf has no name.
    """

    region: str
    inputs: list[str]
    output: Any
    names: list[str | None] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)


class Trace(TorchFunctionMode):
    """Writes what a model computes while it runs, also between its regions.

    Args:
        root (nn.Module): The quantized model.
        state (State): Its quantization.
        target (Target): What the file is for.

    Attributes:
        writer (GraphWriter): The graph so far.
        values (Dict[str, Tensor]): What the quantized tensors were, by name.
        calls (List[RegionCall]): The regions in the graph.
        skipped (List[str]): Regions that read nothing the graph knows.
    """

    def __init__(self, root: nn.Module, state: State, target: Target) -> None:
        super().__init__()
        self.root, self.state, self.target = root, state, target
        self.writer = GraphWriter()
        self.values: dict[str, Tensor] = {}
        self.calls: list[RegionCall] = []
        self.skipped: list[str] = []
        self.parameters = {id(p): name for name, p in root.named_parameters()}
        self.tracker = state.executor.tracker
        self._open: list[RegionCall | None] = []  # the region that runs
        self._pauses = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which the model's calls are written."""
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
        executor.behaviour = _Writing(self.state, self)
        try:
            with torch.no_grad(), self:
                yield
        finally:
            executor.behaviour = behaviour
            for handle in handles:
                handle.remove()

    # --- names of tensors

    def add_input(self, x: Tensor, name: str) -> None:
        """Declares an input of the graph."""
        self.name(x, self.writer.add_input(name, x))

    def name(self, x: Tensor, name: str) -> None:
        setattr(x, _TAG, (self, name, None))

    def lose(self, x: Tensor, reason: str) -> None:
        """The graph cannot have this tensor; an error only if it needs it."""
        setattr(x, _TAG, (self, None, reason))

    def name_of(self, x: Any) -> str | None:
        return self._tag(x)[0]

    def _tag(self, x: Any) -> tuple[str | None, str | None]:
        trace, name, reason = getattr(x, _TAG, (None, None, None))
        return (name, reason) if trace is self else (None, None)

    def knows(self, x: Any) -> bool:
        """Whether a tensor follows from the graph's inputs."""
        return self._tag(x) != (None, None)

    def operand(self, x: Tensor) -> str | None:
        """Name of an operand; a parameter gets a constant of its name."""
        name = self.name_of(x)
        if name is None and id(x) in self.parameters:
            return self.writer.constant(x, self.parameters[id(x)])
        return name

    # --- regions

    def _enter_region(self, name: str, args: tuple, kwargs: dict) -> None:
        if self._open or self._pauses:
            return
        leaves = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        inputs = [self.name_of(x) for x in leaves if self.name_of(x)]
        if inputs:
            self._open.append(RegionCall(name, inputs, None))
        else:
            self.skipped.append(name)
            self._open.append(None)
            self._pauses += 1
        self._open_module = self.root.get_submodule(name)

    def _leave_module(
        self, module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> None:
        if self._open and module is self._open_module:
            self._leave_region(output)
        if self._pauses or not self._open:
            return
        # Autograd functions of extensions are seen by nobody.
        given = tree_flatten((args, kwargs))[0]
        if any(self.knows(x) for x in given):
            for x in tree_flatten(output)[0]:
                if _is_float(x) and not self.knows(x) and x.grad_fn is None:
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
        if call is None:
            self._pauses -= 1
            for x in leaves:
                if isinstance(x, Tensor):
                    self.lose(x, f'{self.skipped[-1]} is not in the graph')
            return
        call.output = output
        for x in leaves:
            name, reason = self._tag(x)
            call.names.append(name)
            call.reasons.append(reason)
        self.calls.append(call)

    # --- calls

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which calls are an engine's own, not the model's."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._pauses:
            return func(*args, **kwargs)
        # An operation in place gives its operand another name.
        before = {id(x): self._tag(x) for x in _tensors(args, kwargs)}
        out = func(*args, **kwargs)
        if any(tag != (None, None) for tag in before.values()):
            op = OPS.get(func)
            name = op.name if op else func.__name__.strip('_')
            site = self.tracker.frame.node.name + '/' + name
            self.write(name, site, args, kwargs, out)
        return out

    def write(self, op: str, site: str, args: tuple, kwargs: dict, out: Any) -> None:
        """Writes a call as it is and names its results."""
        leaves = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        if op == 'setitem':
            leaves = [args[0]]
        if not leaves:
            return
        reasons = [self._tag(x)[1] for x in _tensors(args, kwargs)]
        reason = next((item for item in reasons if item), None)
        names: Any = None
        if reason is None:
            names, reason = self._translate(op, site, args, kwargs, out)
        if reason is not None:
            for x in leaves:
                self.lose(x, reason)
            return
        for x, name in zip(leaves, [names] if isinstance(names, str) else names):
            self.name(x, name)

    def _translate(
        self, op: str, site: str, args: tuple, kwargs: dict, out: Any
    ) -> tuple[Any, str | None]:
        translate = TRANSLATIONS.get(op)
        if op == 'get' and isinstance(out, Tensor) and out.shape == args[0].shape:
            return self.name_of(args[0]), None
        if translate is None:
            return None, f'the exporter lacks the function {op!r} {_origin(site)}'
        kwargs = {
            {'axis': 'dim', 'keepdims': 'keepdim', 'input': 'x', 'self': 'x'}.get(
                key, key
            ): value
            for key, value in kwargs.items()
        }
        count = len(self.writer.nodes)
        try:
            writer = SiteWriter(self.writer, site, out, self.operand)
            return translate(writer, *args, **kwargs), None
        except (NotImplementedError, TypeError, ValueError, KeyError) as error:
            del self.writer.nodes[count:]
            return None, (
                f'the exporter lacks the function {op!r} with these arguments '
                f'({error}) {_origin(site)}'
            )

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
        if form_of(self.target, self.state.plan) == CLIP:
            bounds = [np.float32(k * grid.scale) for k in (low, high)]
            result = writer.node(
                'Clip', [name, *(writer.constant(b, 'range') for b in bounds)], site
            )
            self.values[result] = x
            return result
        storage = activation_storage(self.target, grid)
        implied = (
            low <= storage.low - storage.zero_point
            and high >= storage.high - storage.zero_point
        )
        on_integers = self.target.integer_clips and storage.dtype.endswith('int8')
        if not implied and not on_integers:
            bounds = [np.float32(k * grid.scale) for k in (low, high)]
            name = writer.node(
                'Clip',
                [name, *(writer.constant(b, 'range') for b in bounds)],
                f'{site}:clip',
            )
        integers = writer.quantize(name, grid, storage, site)
        if not implied and on_integers:
            bounds = [np.asarray(k + storage.zero_point) for k in (low, high)]
            integers = writer.node(
                'Clip',
                [integers, *(writer.integers(b, storage, 'limit') for b in bounds)],
                f'{site}:clip',
            )
        result = writer.dequantize(integers, grid, storage, f'{site}:out')
        self.values[result] = x
        return result


class _Writing(Integer):
    """Computes on integers, and writes each step down."""

    def __init__(self, state: State, trace: Trace) -> None:
        super().__init__(state)
        self.trace = trace
        self._weights: dict[str, str] = {}

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        trace = self.trace
        with trace.paused():
            out = super().input(quantizer, x)
        name, reason = trace._tag(x)
        if reason is not None:
            trace.lose(out, reason)
        elif name is not None:
            grid = grid_of(out)
            named = name
            if grid is not None:
                named = self._once(quantizer, name, out, grid)
            trace.name(out, named)
        return out

    def _once(self, quantizer: str, name: str, out: Tensor, grid: Grid) -> str:
        key = f'{name}@{quantizer}'
        if key not in self._weights:
            self._weights[key] = self.trace.emit(quantizer, name, out, grid, None)
        return self._weights[key]

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        trace = self.trace
        if trace._pauses:
            return super().call(step, op, func, args, kwargs)
        tensors = ops.tensor_inputs(op, args, kwargs)
        tags = {id(x): trace._tag(x) for x in tensors}
        with trace.paused():
            out = super().call(step, op, func, args, kwargs)
        if step.follows and (step.weight or not step.norm):
            return out
        if not any(trace.knows(x) for x in tensors):
            return out
        if isinstance(out, Tensor) and any(out is x for x in tensors):
            # Computed in place: the operand keeps its name for the nodes below.
            for x in tensors:
                setattr(x, _TAG, (trace, *tags[id(x)]))
        if step.kind in ops.WEIGHTED and step.weight is not None:
            self._write_layer(step, op, args, kwargs, out)
        elif not (step.kind == ops.CLIP and grid_of(out) is not None):
            trace.write(op.name, step.chain, args, kwargs, out)
        else:
            self._carry_name(tensors[0], out)
        if step.kind == ops.PASS or step.last or step.weight or not step.norm:
            self._finish(step, out)
        return out

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        trace = self.trace
        if trace._pauses:
            return super().after_norm(step, x)
        tag = trace._tag(x)
        with trace.paused():
            out = super().after_norm(step, x)
        if out is not x:
            setattr(out, _TAG, (trace, *tag))
            self._finish(step, out)
        return out

    def _carry_name(self, x: Tensor, out: Tensor) -> None:
        name, reason = self.trace._tag(x)
        setattr(out, _TAG, (self.trace, name, reason))

    def _finish(self, step: Step, out: Any) -> None:
        """Quantizes what a step gave, if its quantizer did."""
        trace = self.trace
        for leaf in tree_flatten(out)[0]:
            name = trace.name_of(leaf)
            if name is None:
                continue
            grid = grid_of(leaf)
            moved = step.kind in (ops.PASS, ops.CAT)
            clip = None if moved else step.clip
            if grid is not None:
                trace.name(leaf, trace.emit(step.chain, name, leaf, grid, clip))
            elif clip is not None and step.kind != ops.CLIP:
                self._clamp(step, leaf, name)

    def _clamp(self, step: Step, leaf: Tensor, name: str) -> None:
        """An activation in front of a tensor that stays in float."""
        writer = self.trace.writer
        bounds = [
            '' if b is None else writer.constant(np.float32(b), 'bound')
            for b in step.clip
        ]
        self.trace.name(leaf, writer.node('Clip', [name, *bounds], step.chain))

    def _write_layer(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Any
    ) -> None:
        trace, x = self.trace, ops.tensor_inputs(op, args, kwargs)[0]
        name, reason = trace._tag(x)
        if reason is not None:
            trace.lose(out, reason)
            return
        given, grid = grid_of(x), grid_of(out)
        weight, bias = self._operands(step, given, grid)
        linear_in_space = step.kind == ops.LINEAR and x.dim() > 2
        source: Any = x
        if linear_in_space:
            source = self._flatten(step, x, name, given)
        args, kwargs = ops.replace_operands(args, kwargs, source, weight, bias)
        site = SiteWriter(trace.writer, step.chain, out, trace.operand)
        if linear_in_space:
            result = site.node('Gemm', source, weight, bias, transB=1)
            if grid is not None:
                flat = out.reshape(-1, out.shape[-1])
                result = trace.emit(step.chain, result, flat, grid, step.clip)
            trace.name(out, site.reshape(result, out.shape))
            return
        shaped = _Operand(weight, self.state.layers[step.weight].weight)
        args = (args[0], shaped, *args[2:])
        trace.name(out, TRANSLATIONS[op.name](site, *args, **kwargs))

    def _flatten(self, step: Step, x: Tensor, name: str, given: Grid | None) -> str:
        site = SiteWriter(self.trace.writer, step.chain, x, self.trace.operand)
        flat = site.reshape(name, (-1, x.shape[-1]))
        if given is None:
            return flat
        return self.trace.emit(
            f'{step.chain}:flat', flat, x.reshape(-1, x.shape[-1]), given, None
        )

    def _operands(
        self, step: Step, given: Grid | None, grid: Grid | None
    ) -> tuple[str, str]:
        """Names of a layer's weight and bias, in real numbers."""
        spec = self.state.plan.weights[step.weight]
        writer = self.trace.writer
        scale = self.fallback.grids.step(step.weight)
        layer = self.state.layers[step.weight]
        integers = self.integer_weight(step.weight)
        if spec.format.per_channel:
            steps, axis = scale.cpu().numpy(), spec.axis
        else:
            steps, axis = scale[0].cpu().numpy(), None
        is_clip = form_of(self.trace.target, self.state.plan) == CLIP
        if step.weight not in self._weights:
            if is_clip:
                real = integers.float() * layer.along_channels(scale)
                self._weights[step.weight] = writer.constant(real, spec.weight)
            else:
                storage = weight_storage(self.trace.target, spec.format.bits)
                self._weights[step.weight] = self._dequantized(
                    integers.cpu().numpy(), steps, axis, storage, spec.weight
                )
        bias_name = spec.bias or f'{step.weight}.bias'
        if given is None or grid is None:
            bias = self.real_bias(step.weight)
            return self._weights[step.weight], writer.constant(bias, bias_name)
        key = f'{step.weight}@{given}'
        if key not in self._weights:
            bias = self.integer_bias(step.weight, given)
            # The unit of the engine's accumulator, in the engine's precision.
            unit = scale.float() * given.scale
            if is_clip:
                self._weights[key] = writer.constant(bias.float() * unit, bias_name)
            else:
                unit = unit if spec.format.per_channel else unit[0]
                storage = Storage('int32', 0, -(2**31), 2**31 - 1)
                self._weights[key] = self._dequantized(
                    bias.cpu().numpy(),
                    unit.cpu().numpy(),
                    None if axis is None else 0,
                    storage,
                    bias_name,
                )
        return self._weights[step.weight], self._weights[key]

    def _dequantized(
        self,
        integers: np.ndarray,
        scale: np.ndarray,
        axis: int | None,
        storage: Storage,
        name: str,
    ) -> str:
        writer = self.trace.writer
        zero = np.zeros(np.shape(scale), np.int64)
        return writer.node(
            'DequantizeLinear',
            [
                writer.integers(integers, storage, f'{name}:int'),
                writer.constant(np.asarray(scale, np.float32), f'{name}:scale'),
                writer.integers(zero, storage, 'zero_point'),
            ],
            name,
            **({} if axis is None else {'axis': axis}),
        )


class _Operand(str):
    """Name of a weight that also tells its shape."""

    shape: torch.Size

    def __new__(cls, name: str, weight: Tensor) -> _Operand:
        self = super().__new__(cls, name)
        self.shape = weight.shape
        return self


def _tensors(args: tuple, kwargs: dict) -> list[Tensor]:
    return [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _origin(site: str) -> str:
    """Where in the model's code the running call is."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if 'mmquant_jacinto' not in path and '/torch/' not in path:
            if not path.endswith('contextlib.py'):
                break
        frame = frame.f_back
    where = '' if frame is None else f', {frame.f_code.co_filename}:{frame.f_lineno}'
    return f'(in {site.rpartition("/")[0] or "the model"}{where})'

"""Steps: the nodes of each step of the plan, in the form an engine can fuse."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ...execute.integer.carried_integers import grid_of
from ...execute.integer.exact_functions import narrow
from ...plan.plan import Step
from ...record import ops
from ...record.ops import Op
from ...targets.grid import Grid
from ...targets.storage import Storage
from ..graph.calls import all_tensors, lacks_batch, written_by
from ..operators.exact import EXACT_OPERATORS
from ..operators.table import TRANSLATIONS
from ..operators.translation import SiteWriter
from .layer_writer import LayerWriting

_PAIR = Storage('uint8', 128, 0, 255)


class Writing(LayerWriting):
    """Computes on integers, and writes each step down.

    Args:
        state (State): Of the quantized model.
        trace (Trace): Where to.
    """

    def input(self, quantizer: str, x: Tensor) -> Tensor:
        trace = self.trace
        with trace.paused():
            out = super().input(quantizer, x)
        name, reason = trace.tag(x)
        if reason is not None:
            trace.lose(out, reason)
        elif name is not None:
            grid = grid_of(out)
            named = name
            if grid is not None:
                named = self._once(quantizer, name, out, grid)
            trace.name(out, named)
        elif trace.is_fixed(x):
            trace.fix(out)
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
        if trace.pauses:
            return super().call(step, op, func, args, kwargs)
        tensors = ops.tensor_inputs(op, args, kwargs)
        written = written_by(func, args, kwargs)
        if written is not None and any(map(trace.knows, all_tensors(args, kwargs))):
            trace.keep(written)
        tags = {id(x): trace.tag(x) for x in tensors}
        with trace.paused():
            out = super().call(step, op, func, args, kwargs)
        if step.follows and (self.is_folded(step) or not step.norm):
            return out
        given = all_tensors(args, kwargs)
        if not any(trace.knows(x) for x in given):
            trace.fix_like(out, given)
            return out
        if isinstance(out, Tensor) and any(out is x for x in tensors):
            # Computed in place: the operand keeps its name for the nodes below.
            for x in tensors:
                trace.mark(x, *tags[id(x)])
        if step.kind in ops.WEIGHTED and op.name not in TRANSLATIONS:
            trace.lose(out, f'ONNX has no {op.name}, which {step.chain} calls')
        elif self._reads_lost(step, op, args, kwargs, out):
            return out
        elif step.kind in ops.WEIGHTED and step.weight is not None:
            self._write_layer(step, op, args, kwargs, out)
        elif step.kind in ops.WEIGHTED and step.weight_format is not None:
            self._write_computed_layer(step, op, args, kwargs, out)
        elif self._is_exact(
            op, narrow(grid_of(tensors[0])), grid_of(out), args, kwargs
        ):
            self._write_exact(step, op, args, kwargs, out)
        elif self._opens_channels(step) or step.overwrites:
            self._write_opened(step, op, args, kwargs, out)
        elif not (step.kind == ops.CLIP and grid_of(out) is not None):
            trace.write(op.name, step.chain, args, kwargs, out)
        else:
            self._carry_name(tensors[0], out)
        is_whole = step.last or self.is_folded(step) or not step.norm
        if step.kind == ops.PASS or is_whole:
            self._finish(step, out)
        if written is not None:
            trace.wrote(written, step.chain)
        return out

    def copy(self, x: Tensor) -> Tensor:
        trace = self.trace
        with trace.paused():
            copy = super().copy(x)
        trace.mark_alike(copy, x)
        return copy

    def overwrite(self, x: Tensor, result: Tensor) -> None:
        trace = self.trace
        with trace.paused():
            super().overwrite(x, result)
        trace.mark_alike(x, result)
        trace.wrote(x, trace.tracker.frame.node.name + '/overwrite')

    def _reads_lost(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Any
    ) -> bool:
        """Whether an operand is not in the graph, or cannot be one; says so."""
        trace = self.trace
        reason = trace.reason_of(args, kwargs)
        if reason is None and step.kind in ops.WEIGHTED:
            bias = ops.layer_operands(args, kwargs)[2]
            if bias is not None and trace.knows(bias):
                reason = f'{step.chain} computes its bias from the image'
        if reason is None and lacks_batch(
            op.name, ops.tensor_inputs(op, args, kwargs)[0]
        ):
            reason = f'{step.chain} is called on an image without a batch'
        if reason is None and op.name in ('group_norm', 'layer_norm'):
            if any(trace.knows(x) for x in all_tensors(args[1:], kwargs)):
                reason = f'{step.chain} computes its weight or bias from the image'
        if reason is None:
            return False
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor):
                trace.lose(leaf, reason)
        return True

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        trace = self.trace
        if trace.pauses:
            return super().after_norm(step, x)
        tag = trace.tag(x)
        with trace.paused():
            out = super().after_norm(step, x)
        if out is not x:
            trace.mark(out, *tag)
            self._finish(step, out)
        return out

    def _carry_name(self, x: Tensor, out: Tensor) -> None:
        self.trace.mark(out, *self.trace.tag(x))

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

    def _write_opened(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Tensor
    ) -> None:
        """A call between tensors with scaled channels, or with a pair inside."""
        trace = self.trace
        site = SiteWriter(trace.writer, step.chain, out, trace.operand)
        operands: list[Tensor] = []
        tensors = ops.tensor_inputs(op, args, kwargs)
        for x, quantizer in zip(tensors, step.inputs):
            factor = self.activations.factor(quantizer)
            if factor is not None:
                opened = self._opened_name(site, trace.operand(x, step.chain), factor)
                with trace.paused():
                    x = x.clone()
                trace.name(x, opened)
            elif step.overwrites and quantizer is None:
                x = self._through_pair(step, x, tensors)
            operands.append(x)
        args, kwargs = ops.replace_inputs(op, args, kwargs, operands)
        trace.write(op.name, step.chain, args, kwargs, out)
        behind = self.activations.factor(step.output)
        name = trace.name_of(out)
        if behind is not None and name is not None:
            trace.name(out, site.node('Div', name, behind))

    def _opened_name(self, site: SiteWriter, name: str, factor: Tensor) -> str:
        """A tensor times the factors of its channels, once for all that read it.

        Two nodes would hide from an engine that they are operands of one function.
        """
        key = f'{name}*'
        if key not in self._weights:
            self._weights[key] = site.node('Mul', name, factor)
        return self._weights[key]

    def _through_pair(self, step: Step, x: Tensor, operands: list[Tensor]) -> Tensor:
        """What a layer gives a sum, behind a pair that the engine takes no grid for."""
        trace, writer = self.trace, self.trace.writer
        given = next(grid_of(item) for item in operands if grid_of(item) is not None)
        grid = self._grid(step.output)
        pair = None if grid is None else self.pair_in(step, given, grid)
        if pair is None:
            return x
        name, stored = f'{step.chain}:pair', trace.operand(x, step.chain)
        stored = writer.quantize(stored, pair, _PAIR, name)
        with trace.paused():
            x = x.clone()
        trace.name(x, writer.dequantize_unseen(stored, pair, _PAIR, name))
        return x

    def _write_exact(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Tensor
    ) -> None:
        """A function that the engine computes by ``exact_functions``."""
        trace, writer, x = self.trace, self.trace.writer, args[0]
        name = trace.operand(x, step.chain)
        site = SiteWriter(writer, step.chain, out, trace.operand)
        given = narrow(grid_of(x))
        if given is not None:
            name = self._in_steps(step, name, given)
        write = EXACT_OPERATORS[op.name]
        trace.name(out, write(site, name, given, x, *args[1:], **kwargs))

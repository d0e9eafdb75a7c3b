"""Layers: nodes of convolutions and linear layers, their weights and biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...execute.integer.carried_integers import grid_of
from ...execute.integer.integer import Integer
from ...execute.integer.sampling import Taps, sampled_weight
from ...execute.state import State
from ...plan.plan import Step
from ...quantizers.computed_weights import computed_layer
from ...record import ops
from ...record.ops import Op
from ...targets.grid import Grid
from ...targets.storage import Storage
from ..operators.sampling import write_samples
from ..operators.translation import Operand, SiteWriter
from .exact_layers import write_transposed
from .trace import Trace

_BIAS = Storage('int32', 0, -(2**31), 2**31 - 1)
# Of zeros alone an engine has no bias, and computes a sum behind otherwise. This one
# is rounded away.
_NO_BIAS = 1e-30


class LayerWriting(Integer):
    """Computes on integers, and writes layers down.

    Args:
        state (State): Of the quantized model.
        trace (Trace): Where to.
    """

    def __init__(self, state: State, trace: Trace) -> None:
        super().__init__(state)
        self.trace = trace
        self._weights: dict[str, str] = {}

    def _write_layer(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Any
    ) -> None:
        trace, x = self.trace, ops.tensor_inputs(op, args, kwargs)[0]
        given, grid = grid_of(x), grid_of(out)
        weight, bias = self._operands(step, given, grid)
        if step.joins and self.state.plan.steps[step.joins].overwrites:
            real = self.real_bias(step.weight)
            if not self.integer_bias(step.weight, given).any():
                real = torch.full_like(real, _NO_BIAS)
                bias = trace.writer.constant(real, f'{step.weight}.bias')
        if step.kind == ops.LINEAR and x.dim() > 2:
            name = trace.operand(x, step.chain)
            source = self._flatten(step, x, name, given)
            site = SiteWriter(trace.writer, step.chain, out, trace.operand)
            result = site.node('Gemm', source, weight, bias, transB=1)
            if grid is not None:
                flat = out.reshape(-1, out.shape[-1])
                result = trace.emit(step.chain, result, flat, grid, step.clip)
            trace.name(out, site.reshape(result, out.shape))
            return
        if self._samples(step, given, grid):
            self._write_deformable(step, args, weight, bias, out)
            return
        if self.is_exact_layer(step, given, grid) and not trace.clips:
            self._write_exact_layer(step, op, args, kwargs, out)
            return
        shaped = Operand(weight, self.state.layers[step.weight].weight.shape)
        args, kwargs = ops.replace_operands(args, kwargs, x, shaped, bias)
        trace.write(op.name, step.chain, args, kwargs, out)
        if step.joins is not None and given is not None:
            trace.writer.exact_sums.append(trace.name_of(out))

    def _write_exact_layer(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Tensor
    ) -> None:
        """A layer whose sums the engine would add up as real numbers."""
        trace, x = self.trace, ops.layer_operands(args, kwargs)[0]
        spec = self.state.plan.weights[step.weight]
        given = grid_of(x)
        layer = self.layer_of(step, given, None)
        storage = trace.target.weight_storage(spec.format.bits)
        weight = self._dequantized(
            layer.weight.cpu().numpy(),
            np.float32(1),
            None,
            storage,
            f'{spec.weight}:steps',
        )
        site = SiteWriter(trace.writer, step.chain, out, trace.operand)
        steps = self._in_steps(step, trace.operand(x, step.chain), given)
        trace.name(
            out,
            write_transposed(site, op.name, args, kwargs, steps, weight, layer),
        )

    def _samples(self, step: Step, given: Grid | None, grid: Grid | None) -> bool:
        """Whether a layer is computed on samples of its input's grid."""
        return (
            step.kind == ops.DEFORM_CONV
            and self.engine.rounds_samples
            and given is not None
            and grid is not None
            and (self.is_folded(step) or step.norm is None)
        )

    def _write_deformable(
        self, step: Step, args: tuple, weight: str, bias: str | None, out: Tensor
    ) -> None:
        """A deformable convolution: samples, and a convolution of 1 x 1 over them."""
        trace, writer = self.trace, self.trace.writer
        x, shape, _, offset, mask, *geometry = args
        given = grid_of(x)
        storage = trace.target.activation_storage(given)
        steps = self._in_steps(step, trace.operand(x, step.chain), given)
        taps = Taps.of(shape.shape[2:], geometry)
        site = SiteWriter(writer, step.chain, out, trace.operand)
        samples = write_samples(site, steps, given, storage, x, offset, mask, taps)
        trace.name(
            out,
            site.node(
                *('Conv', samples, weight, bias),
                kernel_shape=[1, 1],
                group=geometry[3],
            ),
        )

    def _write_computed_layer(
        self, step: Step, op: Op, args: tuple, kwargs: dict, out: Any
    ) -> None:
        """A layer whose weight the model computes from its parameters."""
        trace, writer = self.trace, self.trace.writer
        x, weight, _ = ops.layer_operands(args, kwargs)
        if trace.knows(weight):
            trace.lose(out, f'{step.chain} computes its weight from the image')
            return
        given, grid = grid_of(x), grid_of(out)
        unit = None if grid is None and step.joins is None else given
        norm = self.norm_of(step) if self.is_folded(step) else None
        integers, size, bias = computed_layer(step, args, kwargs, unit, norm)
        if self._samples(step, given, grid):
            integers = sampled_weight(integers)
        axis = None if size.numel() == 1 else 1 - (step.kind != ops.CONV_TRANSPOSE)
        size = (size[0] if axis is None else size).cpu()
        storage = trace.target.weight_storage(step.weight_format.bits)
        name = self._dequantized(
            integers.cpu().numpy(), size.numpy(), axis, storage, f'{step.chain}:weight'
        )
        offset = None
        if bias is not None and unit is None:
            offset = writer.constant(bias, f'{step.chain}:bias')
        elif bias is not None:
            unit = (size.float() * given.scale).cpu().numpy()
            offset = self._bias(bias.cpu().numpy(), unit, axis, f'{step.chain}:bias')
        if self._samples(step, given, grid):
            self._write_deformable(step, args, name, offset, out)
            return
        shaped = Operand(name, weight.shape)
        args, kwargs = ops.replace_operands(args, kwargs, x, shaped, offset)
        trace.write(op.name, step.chain, args, kwargs, out)

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
        if self._samples(step, given, grid):
            integers = sampled_weight(integers)
        if spec.format.per_channel:
            steps, axis = scale.cpu().numpy(), spec.axis
        else:
            steps, axis = scale[0].cpu().numpy(), None
        is_clip = self.trace.clips
        if step.weight not in self._weights:
            if is_clip:
                real = integers.float() * layer.along_channels(scale)
                self._weights[step.weight] = writer.constant(real, spec.weight)
            else:
                storage = self.trace.target.weight_storage(spec.format.bits)
                self._weights[step.weight] = self._dequantized(
                    integers.cpu().numpy(), steps, axis, storage, spec.weight
                )
        bias_name = spec.bias or f'{step.weight}.bias'
        if given is None or (grid is None and step.joins is None):
            bias = layer.scaled_bias(self.real_bias(step.weight))
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
                self._weights[key] = self._bias(
                    bias.cpu().numpy(), unit.cpu().numpy(), axis, bias_name
                )
        return self._weights[step.weight], self._weights[key]

    def _bias(
        self, integers: np.ndarray, unit: np.ndarray, axis: int | None, name: str
    ) -> str:
        """A bias in steps of ``unit``, as the target stores it."""
        if self.trace.target.has_float_biases:
            real = torch.from_numpy((integers * unit).astype(np.float32))
            return self.trace.writer.constant(real, name)
        per_channel = None if axis is None else 0
        return self._dequantized(integers, unit, per_channel, _BIAS, name)

    def _in_steps(self, step: Step, name: str, given: Grid) -> str:
        """A quantized value in steps of its grid."""
        writer = self.trace.writer
        source, _ = writer.quantized[name]
        storage = self.trace.target.activation_storage(given)
        unit = given._replace(scale=1.0)
        return writer.dequantize(source, unit, storage, f'{step.chain}:steps')

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

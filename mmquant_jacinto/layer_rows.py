"""Layer rows: what a layer multiplies and what should come out, at a few positions.

A row has all that one output position reads: the patch of a convolution, the features
of a linear layer. A few thousand of them say what a choice of weights costs, in memory
that depends neither on the number of images nor on their size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .calibrate import channel_axis
from .execute import Behaviour
from .observers import is_distributed
from .ops import Op
from .plan import Step, count_calls
from .simulate import Simulate, State
from .weights import Layer

MAX_ROWS = 4096
MAX_ELEMENTS = 2**24  # of the rows of one layer


class LayerRows(NamedTuple):
    """Rows of a layer with ``C`` output channels in ``G`` groups.

    Args:
        inputs (Tensor): What is multiplied, quantized: (n, G, k).
        outputs (Tensor): What the float layer gave there, in the float model, its
            normalization included: (n, C).
    """

    inputs: Tensor
    outputs: Tensor


def has_rows(layer: Layer, step: Step) -> bool:
    """Whether a layer's outputs are products of its weight with rows."""
    if step.kind == ops.LINEAR:
        return layer.weight.dim() == 2
    return step.kind == ops.CONV and layer.weight.dim() in (3, 4)


class _Positions:
    """Chooses output positions, the same in each pass over the same batches.

    Args:
        rows (Mapping[str, int]): How many rows to collect, by weight quantizer.
        calls (Mapping[str, int]): Calls of the layer in a pass.
        batches (int): Number of batches.
    """

    def __init__(
        self, rows: Mapping[str, int], calls: Mapping[str, int], batches: int
    ) -> None:
        self.share = {
            name: -(-count // (calls[name] * batches)) for name, count in rows.items()
        }
        self.generator = torch.Generator().manual_seed(0)

    def choose(self, name: str, available: int) -> Tensor:
        """Some of ``available`` positions."""
        order = torch.randperm(available, generator=self.generator)
        return order[: self.share[name]]


class CollectOutputs(Behaviour):
    """Runs in float and keeps the outputs of some layers.

    Args:
        state (State): Of the quantized model.
        positions (_Positions): Which.
    """

    def __init__(self, state: State, positions: _Positions) -> None:
        self.state = state
        self.positions = positions
        self.rows: dict[str, list[Tensor]] = {name: [] for name in positions.share}

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        out = func(*args, **kwargs)
        if step.kind in ops.WEIGHTED and step.weight in self.rows and not step.norm:
            axis = channel_axis(self.state.layers[step.weight], step)
            self._keep(step.weight, out, axis % out.dim())
        return out

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        if step.weight in self.rows:
            self._keep(step.weight, x, 1)
        return x

    def _keep(self, name: str, out: Tensor, axis: int) -> None:
        rows = out.movedim(axis, -1).reshape(-1, out.shape[axis])
        chosen = self.positions.choose(name, len(rows)).to(rows.device)
        self.rows[name].append(rows[chosen].float())


class CollectInputs(Simulate):
    """Runs quantized and keeps the inputs of some layers.

    Args:
        state (State): Of the quantized model.
        positions (_Positions): Which.
        decided (Mapping[str, tuple]): Weight and bias of the layers that are decided
            already, by weight quantizer.
    """

    observes = False

    def __init__(
        self,
        state: State,
        positions: _Positions,
        decided: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(state)
        self.positions = positions
        self.decided = decided
        self.rows: dict[str, list[Tensor]] = {name: [] for name in positions.share}

    def end(self) -> None:
        """Ranges stay as measured."""

    def _folded(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        return self.decided.get(name) or super()._folded(name, layer)

    def quantize_layer(
        self, step: Step, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        if step.weight in self.rows:
            rows = _input_rows(step, args, kwargs)
            flat = rows.flatten(0, 1) if step.kind == ops.CONV else rows
            chosen = self.positions.choose(step.weight, len(flat)).to(flat.device)
            self.rows[step.weight].append(flat[chosen])
        return super().quantize_layer(step, args, kwargs)


def _input_rows(step: Step, args: tuple, kwargs: dict) -> Tensor:
    """(N, L, G, k) of a convolution, (L, 1, k) of a linear layer."""
    x, weight, _ = ops.layer_operands(args, kwargs)
    x = x.float()
    if step.kind == ops.LINEAR:
        return x.reshape(-1, 1, x.shape[-1])
    return _patches(x, weight, *_geometry(weight, *args[3:], **kwargs))


def _geometry(
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **operands: Tensor,
) -> tuple[Any, Any, Any, int]:
    """What the arguments of a convolution behind its operands say."""
    if padding == 'same':
        # Only where the kernel's reach is even, as it is with odd sizes.
        steps = [dilation] * 2 if isinstance(dilation, int) else dilation
        padding = [d * (k - 1) // 2 for d, k in zip(steps, weight.shape[2:])]
    return stride, 0 if padding == 'valid' else padding, dilation, groups


def _patches(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    if weight.dim() == 3:
        # Of one dimension: the second has the size one.
        x, kernel = x.unsqueeze(2), (1, weight.shape[2])
        stride, padding, dilation = (
            (neutral, *(value if isinstance(value, (tuple, list)) else (value,)))
            for value, neutral in ((stride, 1), (padding, 0), (dilation, 1))
        )
    else:
        kernel = tuple(weight.shape[2:])
    columns = F.unfold(x, kernel, dilation, padding, stride)
    return columns.transpose(1, 2).unflatten(2, (groups, -1))


def collect(
    state: State,
    run: Callable[[Behaviour], None],
    layers: Collection[str],
    decided: Mapping[str, tuple[Tensor, Tensor]],
    batches: int,
) -> dict[str, LayerRows]:
    """Collects the rows of some layers, over processes too.

    Args:
        state (State): Of the quantized model, its ranges measured.
        run (Callable): Runs the model with a behaviour on all batches.
        layers (Collection[str]): Weight quantizers.
        decided (Mapping[str, tuple]): See :class:`CollectInputs`.
        batches (int): How many batches ``run`` has, in this process.

    Returns:
        Dict[str, LayerRows]: Of those layers that have been called.
    """
    world = dist.get_world_size() if is_distributed() else 1
    calls = count_calls(state.plan)
    rows = {name: -(-count_rows(state.layers[name]) // world) for name in layers}
    found: list[dict[str, list[Tensor]]] = []
    for behaviour in (
        CollectOutputs(state, _Positions(rows, calls, batches)),
        CollectInputs(state, _Positions(rows, calls, batches), decided),
    ):
        run(behaviour)
        found.append(behaviour.rows)
    outputs, inputs = found
    return {
        name: LayerRows(*(gather(torch.cat(part[name])) for part in (inputs, outputs)))
        for name in layers
        if inputs[name] and _fit(inputs[name], outputs[name])
    }


def _fit(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether both passes saw the same positions: no proposals between them."""
    return [len(x) for x in inputs] == [len(x) for x in outputs]


def row_elements(layer: Layer) -> int:
    """Elements of the input that one output position reads."""
    return layer.weight[0].numel() * getattr(layer.owner, 'groups', 1)


def count_rows(layer: Layer) -> int:
    """Rows to collect of a layer, over all processes."""
    return max(1, min(MAX_ROWS, MAX_ELEMENTS // row_elements(layer)))


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks."""
    if not is_distributed():
        return rows
    sizes = [None] * dist.get_world_size()
    dist.all_gather_object(sizes, len(rows))
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, max(sizes) - len(rows)))
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])

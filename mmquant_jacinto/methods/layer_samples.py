"""Layer rows: what a layer multiplies and what should come out, at a few positions.

A row has all that one output position reads: the patch of a convolution, the features
of a linear layer. A few thousand of them say what a choice of weights costs, in memory
that depends neither on the number of images nor on their size.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..execute.behaviour import Behaviour
from ..execute.calibrate import channel_axis
from ..execute.fake_quantize import Simulate
from ..execute.state import State
from ..plan.plan import Step, count_calls
from ..quantizers.layers import Layer
from ..quantizers.observers import is_distributed
from ..record import ops
from ..record.ops import Op

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

    def finite(self) -> LayerRows:
        """Those without NaN and infinity."""
        keep = self.inputs.flatten(1).isfinite().all(1)
        keep &= self.outputs.isfinite().all(1)
        return LayerRows(self.inputs[keep], self.outputs[keep])


class Enough(Exception):
    """Ends a pass of the model: what is to be collected is there."""


def has_rows(layer: Layer, step: Step) -> bool:
    """Whether a layer's outputs are products of its weight with rows."""
    if step.kind == ops.LINEAR:
        return layer.weight.dim() == 2
    return step.kind == ops.CONV and layer.weight.dim() in (3, 4)


def row_elements(layer: Layer) -> int:
    """Elements of the input that one output position reads."""
    return layer.weight[0].numel() * getattr(layer.owner, 'groups', 1)


def count_rows(layer: Layer) -> int:
    """Rows to collect of a layer, over all processes."""
    return max(1, min(MAX_ROWS, MAX_ELEMENTS // row_elements(layer)))


class Collected:
    """Rows by layer, at positions that are the same in each pass.

    Args:
        state (State): Of the quantized model.
        layers (Collection[str]): Weight quantizers.
        batches (int): Of a pass, in this process.
    """

    def __init__(self, state: State, layers: Collection[str], batches: int) -> None:
        world = dist.get_world_size() if is_distributed() else 1
        calls = count_calls(state.plan)
        self.calls = {name: calls[name] for name in layers}
        # What runs again does so any number of times.
        self._ends = not state.plan.repeats
        self.share = {
            name: -(-count_rows(state.layers[name]) // (world * count * batches))
            for name, count in self.calls.items()
        }
        self.rows: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.device = state.bias_correction.device

    def add(self, name: str, rows: Tensor) -> None:
        """Keeps a few of the rows of one call: (n, ...)."""
        number = len(self.rows[name])
        generator = torch.Generator().manual_seed(
            zlib.crc32(f'{name} {number}'.encode())
        )
        order = torch.randperm(len(rows), generator=generator, device=generator.device)[
            : self.share[name]
        ]
        self.rows[name].append(rows[order.to(rows.device)].float())

    def check_end(self, batches: int) -> None:
        """Raises :class:`Enough` where each layer has been called in all batches."""
        if self._ends and all(
            len(self.rows[n]) >= batches * count for n, count in self.calls.items()
        ):
            raise Enough

    def take(self, name: str) -> Tensor | None:
        """The rows of a layer, of all processes; None where it was never called.

        Every process must call it equally often.
        """
        rows = self.rows.pop(name)
        return gather(torch.cat(rows) if rows else None, self.device)


class CollectOutputs(Behaviour):
    """Runs in float and keeps the outputs of some layers.

    Args:
        state (State): Of the quantized model.
        collected (Collected): Where to.
    """

    def __init__(self, state: State, collected: Collected) -> None:
        self.state = state
        self.collected = collected

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        out = func(*args, **kwargs)
        if step.kind in ops.WEIGHTED and not step.norm:
            self._keep(step, out)
        return out

    def after_norm(self, step: Step, x: Tensor) -> Tensor:
        self._keep(step, x)
        return x

    def _keep(self, step: Step, out: Tensor) -> None:
        if step.weight in self.collected.rows:
            layer = self.state.layers[step.weight]
            # A normalization is no linear layer, whatever it follows.
            axis = 1 if step.follows else channel_axis(layer, step)
            rows = out.movedim(axis, -1)
            self.collected.add(step.weight, rows.reshape(-1, rows.shape[-1]))


class CollectInputs(Simulate):
    """Runs quantized and keeps the inputs of some layers.

    Args:
        state (State): Of the quantized model.
        collected (Collected): Where to.
        decided (Mapping[str, tuple]): Weight and bias of the layers that are decided
            already, by weight quantizer.

    Raises:
        Enough: As soon as nothing more is to be collected in a pass.
    """

    observes = False

    def __init__(
        self,
        state: State,
        collected: Collected,
        decided: Mapping[str, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__(state)
        self.collected = collected
        self.decided = decided
        self._passes = 0

    def begin(self) -> None:
        self._passes += 1
        # Neither weights nor ranges change from pass to pass.
        if not self.grids.is_computed:
            super().begin()

    def end(self) -> None:
        """Ranges stay as measured."""

    def _folded(self, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        return self.decided.get(name) or super()._folded(name, layer)

    def quantize_layer(
        self, step: Step, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        if step.weight in self.collected.rows:
            self.collected.add(step.weight, _input_rows(step, args, kwargs))
            self.collected.check_end(self._passes)
        return super().quantize_layer(step, args, kwargs)


def _input_rows(step: Step, args: tuple, kwargs: dict) -> Tensor:
    """What each output position reads, image after image: (n, G, k)."""
    x, weight, _ = ops.layer_operands(args, kwargs)
    if step.kind == ops.LINEAR:
        return x.reshape(-1, 1, x.shape[-1])
    return _patches(x.float(), weight, *args[3:], **kwargs)


def _patches(
    x: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **operands: Tensor,
) -> Tensor:
    """Patches of a convolution, its arguments behind the operands as it takes them."""
    dims = weight.dim() - 2
    kernel = list(weight.shape[2:])
    stride, dilation = ops.per_axis(stride, dims), ops.per_axis(dilation, dims)
    if padding == 'same':
        totals = [d * (k - 1) for d, k in zip(dilation, kernel)]
        pads = [(total // 2, total - total // 2) for total in totals]
    else:
        padding = 0 if padding == 'valid' else padding
        pads = [(p, p) for p in ops.per_axis(padding, dims)]
    x = F.pad(x, [end for pair in reversed(pads) for end in pair])
    if dims == 1:
        x, kernel = x.unsqueeze(2), [1, *kernel]
        stride, dilation = [1, *stride], [1, *dilation]
    columns = F.unfold(x, tuple(kernel), tuple(dilation), 0, tuple(stride))
    return columns.transpose(1, 2).unflatten(2, (groups, -1)).flatten(0, 1)


def gather(rows: Tensor | None, device: torch.device) -> Tensor | None:
    """Rows of all processes, in the order of their ranks; some may have none."""
    if not is_distributed():
        return rows
    shapes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shapes, None if rows is None else tuple(rows.shape))
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return None
    if rows is None:
        rows = torch.zeros(0, *known[0][1:], device=device)
    longest = max(shape[0] for shape in known)
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, longest - len(rows)))
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([p[: s[0]] for p, s in zip(parts, shapes) if s is not None])

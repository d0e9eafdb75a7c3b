"""Sensitivity: how much of a network's output each weight's rounding turns to noise.

To first order, rounding the weight of one layer by ``dW`` moves the outputs by
``J dW``. Of a random projection of the outputs, ``v . y`` with independent
standard normal ``v``, the gradient ``g`` with respect to that weight gives
``E[(g . dW)^2] = |J dW|^2``: one backward pass gives a sample for every layer
and every width at once, where measuring takes a forward pass for each. It is
the Gauss-Newton form of the Hessian-weighted perturbation of HAWQ-V2 (arXiv
1911.03852) and of the Fisher information of FIT (arXiv 2210.08502), with the
squared error of the outputs as the loss: it needs no ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import QuantizeError
from ..execute.state import State
from ..plan.plan import Step
from ..quantizers.layers import Layer
from ..quantizers.observers import is_distributed
from ..quantizers.weight_grids import WeightGrids
from ..quantizers.weights import quantize_weight
from ..record import ops
from ..record.ops import Op
from .network_outputs import FloatOutputs


class Probe(FloatOutputs):
    """Runs in float, and projects what leaves the network on random directions.

    Weights of layers stand in as leaves of the autograd graph of their own, so
    frozen and packed parameters have gradients too.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.state = state
        self.generator: torch.Generator | None = None
        self._leaves: dict[str, Tensor] = {}
        self._is_replay = False

    def begin(self) -> None:
        super().begin()
        self._leaves = {}

    @contextmanager
    def replay(self, memory: Any) -> Iterator[None]:
        self._is_replay = True
        try:
            yield
        finally:
            self._is_replay = False

    def call(
        self, step: Step, op: Op, func: Callable, args: tuple, kwargs: dict
    ) -> Any:
        if step.weight is not None and step.kind in ops.WEIGHTED:
            x, _, bias = ops.layer_operands(args, kwargs)
            args, kwargs = ops.replace_operands(
                args, kwargs, x, self._leaf(step.weight), bias
            )
        return super().call(step, op, func, args, kwargs)

    def after_norm(self, step: Step, x: Any) -> Any:
        return x if self._is_replay else super().after_norm(step, x)

    def _leaf(self, name: str) -> Tensor:
        leaf = self._leaves.get(name)
        if leaf is None:
            leaf = self.state.layers[name].weight.detach().requires_grad_()
            self._leaves[name] = leaf
        return leaf

    def _project(self, name: str, x: Tensor) -> Tensor:
        direction = torch.empty_like(x).normal_(generator=self.generator)
        # Outputs count with their share of noise, whatever their unit; one that is
        # nearly zero on an image as if it had a step everywhere.
        activations, least = self.state.activations, torch.finfo(x.dtype).tiny
        if activations.has_range(name):
            least = activations.host_grid(name).scale * x.numel() ** 0.5
        return (x * direction).sum() / x.detach().norm().clamp(min=least)

    def gradients(self) -> dict[str, Tensor]:
        """Gradient of the projections of the last pass, by weight quantizer."""
        projections = [self._project(*item) for item in self.outputs.take()]
        total = [item for item in projections if item.requires_grad]
        leaves, self._leaves = self._leaves, {}
        if not total:
            return {}
        found = torch.autograd.grad(
            torch.stack(total).sum(), list(leaves.values()), allow_unused=True
        )
        return {name: grad for name, grad in zip(leaves, found) if grad is not None}


class Sensitivity:
    """Noise in the network's outputs, by layer and width, summed over passes.

    Args:
        state (State): Of the quantized model, with ranges, running
            as :class:`Probe`.
        names (Sequence[str]): Weight quantizers to measure.
        widths (Sequence[int]): Widths to measure them at.
    """

    def __init__(
        self, state: State, names: Sequence[str], widths: Sequence[int]
    ) -> None:
        self.names, self.widths = tuple(names), tuple(widths)
        self._layers: list[dict[str, Layer]] = []
        self._grids: list[WeightGrids] = []
        for width in widths:
            plan = state.plan.with_weight_bits(dict.fromkeys(names, width))
            layers = {
                name: layer.with_spec(plan.weights[name])
                for name, layer in state.layers.items()
            }
            grids = WeightGrids(plan, layers, state.activations)
            grids.compute(state.bias_correction)
            self._layers.append(layers)
            self._grids.append(grids)
        # Passes, and the sums: what all processes add up.
        self._sums = state.bias_correction.new_zeros(
            1 + len(names) * len(widths), dtype=torch.float32
        )

    @torch.no_grad()
    def add(self, gradients: dict[str, Tensor]) -> None:
        """Adds the gradients of one pass; one that is not finite is left out."""
        if not gradients:
            return
        columns = [
            self._dots(name, gradients[name])
            if name in gradients
            else self._sums.new_zeros(len(self.widths))
            for name in self.names
        ]
        noise = torch.stack(columns).square().flatten()
        sample = torch.cat([noise.new_ones(1), noise])
        self._sums += torch.where(noise.isfinite().all(), sample, sample.new_zeros(()))

    def _dots(self, name: str, gradient: Tensor) -> Tensor:
        """Projections of what rounding to each width does: (widths,)."""
        dots = []
        for layers, grids in zip(self._layers, self._grids):
            layer = layers[name]
            weight = layer.weight
            step = layer.along_channels(grids.live_step(name))
            fmt = layer.spec.format
            rounded = layer.unscaled(quantize_weight(layer.scaled(weight), step, fmt))
            dots.append((gradient * (rounded - weight)).sum())
        return torch.stack(dots)

    def result(self) -> dict[str, list[float]]:
        """Mean noise to signal by width, of each layer, over all processes.

        Summed over the network's outputs, each with its own signal.

        Raises:
            QuantizeError: If there was no pass with finite gradients.
        """
        sums = self._sums.double()
        if is_distributed():
            dist.all_reduce(sums)
        if not sums[0]:
            raise QuantizeError(
                'quantize.mixed_precision measured nothing: on no image has an output '
                'of the network a finite gradient; check the checkpoint (load_from), '
                'and that quantize.overrides leaves more than the backbone quantized'
            )
        noise = (sums[1:] / sums[0]).view(len(self.names), -1)
        return dict(zip(self.names, noise.tolist()))

"""Fine-tune: all weights, biases and scales together, for the float model's outputs.

As in QFT (Finkelstein et al., arXiv 2212.02634), which trains all degrees of freedom of
a quantized network end to end, on a few unlabelled images: the student is the
fake-quantized model with learned scales, its batch normalization folded; the teacher is
the same model in float, with the weights that it had before anything was calibrated.
What is brought together is what leaves the network; what decodes it takes no part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Callable

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from ..config.sections import Finetune
from ..errors import QuantizeError
from ..execute.behaviour import Behaviour
from ..execute.fake_quantize import Simulate
from ..execute.state import State
from ..plan.plan import Step
from ..quantizers.layers import channel_rows
from ..quantizers.observers import is_distributed
from .network_outputs import FloatOutputs, Outputs

REPORTS = 10  # lines in the log
# The share of its mean over the images that an output's energy counts as at least.
LEAST_ENERGY = 0.1
# Elements of the teacher's outputs that are held, to be seen again.
MAX_HELD = 2**26
# What a pass gave: each output's quantizer, and the tensor.
Kept = list[tuple[str, Tensor]]


class Student(Simulate):
    """Runs fake-quantized on known ranges, and keeps what leaves the network.

    Args:
        state (State): Of the quantized model.
    """

    observes = False  # ranges are where the scales started

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.outputs = Outputs(state.plan)

    def begin(self) -> None:
        super().begin()
        self.outputs.take()

    def end(self) -> None:
        """No step of a training: nothing is measured or counted."""

    def _emit(self, step: Step, x: Any) -> Any:
        return self.outputs.add(step, super()._emit(step, x))


def paired(outputs: Kept, reference: Kept) -> list[tuple[str, Tensor, Tensor]]:
    """Outputs of two passes that belong together, and their quantizers.

    The k-th tensor of a quantizer in one pass belongs to the k-th in the other. Tensors
    of another shape, for boxes that the model itself proposes, are left out.
    """
    waiting: dict[str, list[Tensor]] = {}
    for name, x in reference:
        waiting.setdefault(name, []).append(x)
    pairs = []
    for name, x in outputs:
        known = waiting.get(name)
        expected = known.pop(0) if known else None
        if expected is not None and expected.shape == x.shape:
            pairs.append((name, x, expected))
    return pairs


def output_loss(
    outputs: Kept, reference: Kept, least: Mapping[str, Tensor]
) -> Tensor | None:
    """Squared error over squared reference, mean over the outputs.

    Args:
        outputs (Kept): Of the student, with a graph.
        reference (Kept): Of the teacher.
        least (Mapping[str, Tensor]): Mean squares by quantizer: a reference counts as
            no smaller. One that is nearly zero on an image would outweigh all others.

    Returns:
        Tensor, optional: Zero-dimensional; None where no outputs belong together.
    """
    losses = []
    for name, x, expected in paired(outputs, reference):
        expected = expected.detach().float()
        size = expected.square().mean().maximum(least[name])
        losses.append((x.float() - expected).square().mean() / size)
    return torch.stack(losses).mean() if losses else None


def _cycle(batches: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """Batches, and which ones they are, again and again."""
    while True:
        for index, batch in enumerate(batches):
            yield batch, index


class Finetuning:
    """Trains what a calibrated model has, for the outputs of the float one.

    Args:
        state (State): Of the quantized model, with ranges and learned scales.
        run (Callable): Runs the model with a behaviour on a batch; with the float
            weights, where the behaviour is the teacher.
        options (Finetune): See ``quantize.finetune``.
    """

    def __init__(
        self, state: State, run: Callable[[Behaviour, Any], None], options: Finetune
    ) -> None:
        self.state = state
        self.run = run
        self.options = options
        self._held: dict[int, Kept] = {}
        # Of the teacher's outputs: sums of their mean squares, and how many.
        self._squares: dict[str, tuple[Tensor, Tensor]] = {}
        self.teacher, self.student = FloatOutputs(state), Student(state)
        activations = state.activations
        # Nothing below a step of their grid can be told apart.
        self._least_squares = {
            name: activations.host_grid(name).scale ** 2
            if activations.has_range(name)
            else torch.finfo(torch.float32).tiny
            for name in self.student.outputs.names
        }
        with torch.no_grad():
            self.student.begin()

    def train(self, batches: Iterable[Any]) -> list[float]:
        """Trains on as many batches as there are iterations.

        Args:
            batches (Iterable): Gives the same batches each time.

        Returns:
            List[float]: The loss of each iteration, mean of all processes. Those in
            which the float model gave NaN or infinity are left out.

        Raises:
            QuantizeError: If the loss is not finite, or no output can be compared.
        """
        total = self.options.iterations
        every = math.ceil(total / REPORTS)
        history: list[float] = []
        with self._leaves() as (optimizer, parameters):
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
            steps = itertools.islice(_cycle(batches), total)
            for done, (batch, index) in enumerate(steps, 1):
                reference = self._reference(batch, index)
                loss = self._descend(batch, reference, parameters)
                if loss is not None:
                    history.append(loss)
                    optimizer.step()
                    schedule.step()
                if history and (done % every == 0 or done == total):
                    recent = history[-every:]
                    print_log(
                        f'Fine-tuning: iteration {done} of {total}, '
                        f'loss {sum(recent) / len(recent):.5f}',
                        'current',
                    )
        if not history:
            raise QuantizeError(
                'quantize.finetune: the float model gives NaN or infinity on every '
                'calibration image; check the checkpoint (load_from) and the '
                'normalization of the images'
            )
        return history

    @torch.no_grad()
    def _reference(self, batch: Any, index: int) -> Kept:
        """What the teacher gives for a batch; held where there is room for it."""
        if index in self._held:
            return self._held[index]
        self.run(self.teacher, batch)
        outputs = self.teacher.outputs.take()
        for name, x in outputs:
            total, count = self._squares.get(name, (0.0, 0.0))
            square = x.float().square().mean()
            finite = square.isfinite()
            total = total + torch.where(finite, square, torch.zeros_like(square))
            self._squares[name] = total, count + finite.float()
        known = (*self._held.values(), outputs)
        if sum(x.numel() for part in known for _, x in part) <= MAX_HELD:
            self._held[index] = outputs
        return outputs

    def _least(self) -> dict[str, Tensor]:
        """What the mean squares of outputs count as at least, by quantizer."""
        return {
            name: (LEAST_ENERGY * total / count.clamp(min=1)).clamp(
                min=self._least_squares[name]
            )
            for name, (total, count) in self._squares.items()
        }

    def _gradients(
        self, batch: Any, reference: Kept, parameters: list[Tensor]
    ) -> Tensor:
        """Whether outputs were compared, whether they count, loss and gradients.

        All zero where nothing can be compared, all but the first where the float
        model's outputs are not finite.
        """
        with torch.enable_grad():
            self._place_biases()
            self.run(self.student, batch)
            loss = output_loss(self.student.outputs.take(), reference, self._least())
        flat = torch.zeros(
            3 + sum(p.numel() for p in parameters), device=parameters[0].device
        )
        if loss is None or not loss.requires_grad:
            return flat
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        grads = [
            torch.zeros_like(p).flatten() if grad is None else grad.flatten()
            for p, grad in zip(parameters, found)
        ]
        one = torch.ones_like(flat[:1])
        counts = torch.stack([x.isfinite().all() for _, x in reference]).all()
        return torch.cat(
            [one, torch.where(counts, torch.cat([one, loss[None], *grads]), flat[1:])]
        ).detach()

    def _descend(
        self, batch: Any, reference: Kept, parameters: list[Tensor]
    ) -> float | None:
        """Gives the parameters their gradients, means of all processes."""
        flat = self._gradients(batch, reference, parameters)
        if is_distributed():
            dist.all_reduce(flat)
        compared, count, loss_sum = flat[:3].tolist()
        if not compared:
            raise QuantizeError(
                'quantize.finetune has nothing to compare: no output of the network '
                'has a gradient, and the same shape in float and quantized; leave it '
                'away'
            )
        if not count:
            return None
        if not math.isfinite(loss_sum):
            raise QuantizeError(
                'the loss of quantize.finetune is NaN or infinite; use a lower '
                f'quantize.finetune.lr than {self.options.lr:g}, and check that the '
                'float model gives finite outputs'
            )
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, grad in zip(parameters, (flat[3:] / count).split(sizes)):
            parameter.grad = grad.view_as(parameter)
        return loss_sum / count

    def _place_biases(self) -> None:
        self.state.bias_correction = self._known + self._unit * self._moves

    @contextmanager
    def _leaves(self) -> Iterator[tuple[torch.optim.Optimizer, list[Tensor]]]:
        """The optimizer of all that is trained; the state has it afterwards."""
        state, lr = self.state, self.options.lr
        weights, units = self._weights()
        required = [weight.requires_grad for weight in weights]
        self._known, self._unit = state.bias_correction, self._bias_unit()
        self._moves = torch.zeros_like(self._known, requires_grad=True)
        scales = [*state.learned.parameters(), *state.activations.learned.parameters()]
        groups = [
            dict(params=[weight], lr=lr * unit) for weight, unit in zip(weights, units)
        ]
        groups.append(dict(params=[self._moves], lr=lr))
        groups.append(dict(params=scales, lr=lr * self.options.lr_mult))
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield torch.optim.Adam(groups), [*weights, self._moves, *scales]
        finally:
            state.bias_correction = self._known
            with torch.no_grad():
                self._known += self._unit * self._moves
            for parameter in (*weights, *scales):
                parameter.grad = None
            for weight, needed in zip(weights, required):
                weight.requires_grad_(needed)

    def _weights(self) -> tuple[list[Tensor], list[float]]:
        """Weights, each once, and a typical step of each one's grid."""
        found: dict[str, Tensor] = {}
        units: dict[str, float] = {}
        for name, layer in self.state.layers.items():
            key = layer.spec.weight
            # Rows of one parameter have grids of their own.
            if key not in found:
                found[key] = self.state.root.get_parameter(key)
                step = layer.along_channels(self.student.grids.live_step(name))
                step = layer.unscaled(step.expand_as(layer.parameter))
                units[key] = step.abs().median().item()
        return list(found.values()), list(units.values())

    def _bias_unit(self) -> Tensor:
        """What a step of all weights of a channel at once adds up to: (C,).

        As signs vary, with the square root of their number.
        """
        parts = []
        for name, layer in self.state.layers.items():
            count = channel_rows(layer, layer.weight)[0].numel()
            step = self.student.grids.step(name)
            if layer.output_factor is not None:
                step = step * layer.output_factor
            parts.append(step * count**0.5)
        return torch.cat(parts)

"""Self-distillation: the float model teaches the training in which it is quantized.

As in Apprentice (Mishra and Marr, arXiv 1711.05852), whose student is its teacher in
fewer bits: the teacher is the float checkpoint that the training starts from, so there
is no second one to name. Both see the same batch. What is brought together is what
leaves the network, before anything decodes it or compares it with labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import QuantizeError
from ..execute.fake_quantize import Simulate
from ..execute.quantization import Quantization
from ..execute.state import State
from ..plan.network import output_quantizers
from ..plan.plan import Step
from ..record.side_effects import preserved_random_state, untouched
from .network_outputs import FloatOutputs, Outputs
from .output_error import Kept, Reference, count_images, is_of_images, paired
from .selections import NotedSelections, imposed

LOSS = 'loss_teacher'
ERROR = 'teacher_error'  # what the loss is a multiple of; it is logged, not added
# The variance that an output counts as having at least: one that is the same
# everywhere would outweigh all others.
LEAST_VARIANCE = 1e-6
# Gradients of losses that are means over many elements vanish in half precision.
RAISED = 1024.0


class _Enough(Exception):
    """The teacher has given all that is compared; the rest of its pass is spared."""


class Taught(Simulate):
    """Fake quantization that keeps what leaves the network.

    Args:
        state (State): Of the quantized model.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state, state.fake_quants)
        self.outputs = Outputs(state.plan)

    def begin(self) -> None:
        super().begin()
        self.outputs.take()

    def _emit(self, step: Step, x: Any) -> Any:
        x = super()._emit(step, x)
        # What reads it may write into it.
        return x.clone() if self.outputs.keep(step, x) else x


class _Lesson(FloatOutputs):
    """The teacher's pass, up to the last output that is compared.

    Args:
        state (State): Of the quantized model.
        length (int, optional): How many outputs that takes; None: all of the pass.
    """

    def __init__(self, state: State, length: int | None) -> None:
        super().__init__(state)
        self.length = length

    def after_norm(self, step: Step, x: Any) -> Any:
        x = super().after_norm(step, x)
        if self.length is not None and len(self.outputs.kept) >= self.length:
            raise _Enough
        return x


class Teacher:
    """Adds to a model's losses how far its outputs are from those in float.

    It listens at the model itself, so a wrapper for several processes makes no
    difference. In the teacher normalization and dropout are those of a test.

    Args:
        quantization (Quantization): Of the model, which in training behaves as
            :class:`Taught`.
        weights (Mapping[str, Tensor]): All parameters and buffers in float, by name.
        weight (float): How strongly the teacher pulls at the weights, in units of how
            the labels do: see :func:`balance`.
        is_asked (bool): Whether it is an error that nothing can be compared.
    """

    def __init__(
        self,
        quantization: Quantization,
        weights: Mapping[str, Tensor],
        weight: float,
        is_asked: bool,
    ) -> None:
        self.quantization: Quantization | None = quantization
        self.weights = dict(weights)
        self.weight, self.is_asked = weight, is_asked
        root = quantization.root
        # Heads look at their own flag: what they compute in training stays.
        self._tested = [
            module
            for module in root.modules()
            if not any(True for _ in module.children())
            or isinstance(module, nn.MultiheadAttention)
        ]
        self._last_weights = last_weights(quantization)
        self._length: int | None = None
        # Where it selects nothing, watching it would cost each pass some time.
        self._selects = True
        self._reference: Reference | None = None
        self._imposed = ExitStack()
        # First of all: behind it the student's pass begins.
        root.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        # Broken off or not, a pass leaves no context behind.
        root.register_forward_hook(self._after, with_kwargs=True, always_call=True)

    def __deepcopy__(self, memo: dict) -> Teacher:
        # A copy of a model (EMA) is not taught.
        idle = copy.copy(self)
        idle.quantization, idle.weights, idle._tested = None, {}, []
        idle._imposed = ExitStack()
        return idle

    @property
    def _student(self) -> Taught | None:
        """Taught, optional: What the model computes, if that is a training step."""
        executor = None if self.quantization is None else self.quantization.executor
        behaviour = None if executor is None else executor.behaviour
        if isinstance(behaviour, Taught) and torch.is_grad_enabled():
            return behaviour
        return None

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._student is None or kwargs.get('mode', 'loss') != 'loss':
            return
        # The first pass is a whole one, which may leave traces in the losses' modules.
        is_first, weights = self._length is None, self.weights
        if is_first:
            weights = {name: value.clone() for name, value in weights.items()}
        with untouched(module) if is_first else preserved_random_state():
            self._reference = self._teach(module, weights, args, kwargs)
        self._imposed.enter_context(imposed(self._reference.selections))

    @torch.no_grad()
    def _teach(
        self,
        module: nn.Module,
        weights: dict[str, Tensor],
        args: tuple,
        kwargs: dict,
    ) -> Reference:
        """What the float model gives for the batch that the student is going to see."""
        executor = self.quantization.executor
        student, lesson = executor.behaviour, _Lesson(self.quantization, self._length)
        # What compares with labels may change them.
        kwargs = {
            name: item if isinstance(item, Tensor) else copy.deepcopy(item)
            for name, item in kwargs.items()
        }
        training = [part for part in self._tested if part.training]
        noted = NotedSelections(lesson.outputs)
        executor.behaviour = lesson
        for part in training:
            part.training = False
        try:
            with noted if self._selects else nullcontext():
                functional_call(module, weights, args, kwargs)
        except _Enough:
            pass
        finally:
            executor.behaviour = student
            for part in training:
                part.training = True
        outputs = lesson.outputs.take()
        selections = noted.before(len(outputs))
        self._selects = bool(selections)
        return Reference(outputs, selections)

    def _after(
        self, module: nn.Module, args: tuple, kwargs: dict, output: Any
    ) -> dict[str, Any] | None:
        self._imposed.close()
        reference, self._reference = self._reference, None
        student = self._student
        if reference is None or student is None or not isinstance(output, Mapping):
            return None
        images = count_images(args, kwargs)
        pairs = [
            (x, expected)
            for _, x, expected in paired(student.outputs.take(), reference.outputs)
            # Inside activation checkpointing that begins anew there is no graph.
            if x.requires_grad and is_of_images(x, images)
        ]
        if self._length is None:
            self._begin(reference.outputs, pairs)
        if not pairs:
            return None
        errors = [relative_error(x, expected) for x, expected in pairs]
        error = torch.stack(errors).mean()
        scale = self.weight * balance(total(output), error, self._last_weights)
        return {**output, LOSS: scale * error, ERROR: error.detach()}

    def _begin(self, reference: Kept, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Notes how far the teacher has to run.

        Raises:
            QuantizeError: If there is nothing to compare, and the user asks for it.
        """
        compared = {id(expected) for _, expected in pairs}
        places = [i for i, (_, x) in enumerate(reference) if id(x) in compared]
        if places:
            self._length = places[-1] + 1
            print_log(
                f'Self-distillation: {len(pairs)} outputs are compared with float.',
                'current',
            )
            return
        text = (
            'no output of the network has a gradient, and the same shape in float and '
            'quantized, for each image (activation checkpointing of heads has none)'
        )
        if self.is_asked:
            raise QuantizeError(
                f'quantize.distill has nothing to compare: {text}; use distill=False'
            )
        print_log(f'No self-distillation: {text}.', 'current')
        self.quantization = None


def relative_error(x: Tensor, expected: Tensor) -> Tensor:
    """Mean squared error in units of the variance of what is expected.

    So neither the unit of an output nor a constant in it (a head's negative logits)
    decides what it counts.

    Args:
        x (Tensor): Of the student, any shape and floating type.
        expected (Tensor): Of the teacher, the same shape. What is not finite in it
            does not count.

    Returns:
        Tensor: Zero-dimensional, float32.
    """
    x, expected = x.float(), expected.detach().float()
    expected = torch.where(expected.isfinite(), expected, x.detach())
    size = expected.var(unbiased=False).clamp(min=LEAST_VARIANCE)
    return (x - expected).square().mean() / size


def total(losses: Mapping[str, Any]) -> Tensor | None:
    """The sum of what a model calls losses, as MMEngine adds it up; None for none."""
    found = []
    for name, value in losses.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        if 'loss' in name:
            found += [part.mean() for part in parts if part.requires_grad]
    return sum(found[1:], found[0]) if found else None


def last_weights(state: State) -> list[Tensor]:
    """Weights, of those that are trained, of layers that give what leaves a network."""
    names = output_quantizers(state.plan)
    chains = {step.chain for step in state.plan.steps.values() if step.output in names}
    keys = {
        state.layers[step.weight].spec.weight: None
        for step in state.plan.steps.values()
        if step.weight is not None and step.chain in chains
    }
    found = [state.root.get_parameter(key) for key in keys]
    return [weight for weight in found if weight.requires_grad]


def balance(labels: Tensor | None, error: Tensor, weights: list[Tensor]) -> Tensor:
    """What makes an error pull at weights as strongly as the labels do.

    The ratio of the norms of both gradients, as in GradNorm (Chen et al., arXiv
    1711.02257). So one step of an optimizer fits both, whatever the losses' units.

    Args:
        labels (Tensor, optional): The model's own loss, zero-dimensional.
        error (Tensor): Zero-dimensional.
        weights (List[Tensor]): That both follow from; of the last layers, gradients
            are cheap.

    Returns:
        Tensor: Zero-dimensional, float32, without a graph; 1 where one of both does
        not follow from any of them.
    """
    norms = []
    for loss in (labels, error):
        if loss is None or not weights:
            return error.new_ones(())
        grads = torch.autograd.grad(
            loss * RAISED, weights, retain_graph=True, allow_unused=True
        )
        squares = [grad.float().square().sum() for grad in grads if grad is not None]
        if not squares:
            return error.new_ones(())
        norms.append(torch.stack(squares).sum().sqrt())
    ratio = norms[0] / norms[1]
    # One that overflowed, or of no error at all, must not spoil a step.
    return torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))

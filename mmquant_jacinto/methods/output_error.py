"""Output error: how far a quantized model's outputs are from those in float.

What is compared is what leaves the network; what decodes it takes no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..execute.behaviour import Behaviour
from ..execute.fake_quantize import Simulate
from ..execute.state import State
from ..plan.plan import Step
from ..quantizers.observers import is_distributed
from .network_outputs import FloatOutputs, Outputs
from .selections import NotedSelections, imposed

# The share of its mean over the images that an output's energy counts as at least.
LEAST_ENERGY = 0.1
# Elements of the reference's outputs that are held, to be seen again.
MAX_HELD = 2**26
# Features count no more than so many times as much as the outputs do.
MOST_FEATURES, TINY = 3.0, 1e-12
# What a pass gave: each output's quantizer, and the tensor.
Kept = list[tuple[str, Tensor]]


class Reference(NamedTuple):
    """What a pass in float gave for a batch.

    Attributes:
        outputs (Kept): In their order.
        selections (Sequence[Tensor]): What it selected on the way to them, see
            :mod:`~mmquant_jacinto.methods.selections`.
    """

    outputs: Kept
    selections: Sequence[Tensor]


class Student(Simulate):
    """Runs fake-quantized on known ranges, and keeps what leaves the network.

    Args:
        state (State): Of the quantized model.
        features (bool): See :class:`~.network_outputs.Outputs`.
    """

    observes = False  # ranges are where the scales started

    def __init__(self, state: State, features: bool = False) -> None:
        super().__init__(state)
        self.outputs = Outputs(state.plan, features)

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


def count_images(args: tuple, kwargs: Mapping[str, Any]) -> int | None:
    """How many images a model is called with; None where that is not to be seen."""
    for item in (*args, *kwargs.values()):
        if isinstance(item, Tensor) and item.dim() > 2:
            return item.shape[0]
        if isinstance(item, (list, tuple)):
            return len(item)
    return None


def is_of_images(x: Tensor, images: int | None) -> bool:
    """Whether a tensor is one of images, and not of boxes that a model proposes.

    Which boxes these are, and in which order, differs between student and teacher.

    Args:
        x (Tensor): (N, ...), or (L, N, ...) of several layers or queries.
        images (int, optional): N; None: not known.
    """
    if images is None:
        return True
    return images in (x.shape[:2] if x.dim() > 2 else x.shape[:1])


class OutputError:
    """Compares what a model gives quantized with what it gives in float.

    Args:
        state (State): Of the quantized model, with ranges.
        run (Callable): Runs the model with a behaviour on a batch; with the float
            weights, where the behaviour is the teacher.
        features (float): What the error of features counts beside that of outputs, in
            the gradients of :meth:`loss`. Defaults to 0.
    """

    def __init__(
        self,
        state: State,
        run: Callable[[Behaviour, Any], None],
        features: float = 0.0,
    ) -> None:
        self.run = run
        self.features = features
        self._state = state
        self._held: dict[Any, Reference] = {}
        # Of the teacher's outputs: sums of their mean squares, and how many.
        self._squares: dict[str, tuple[Tensor, Tensor]] = {}
        self.teacher = FloatOutputs(state, bool(features))
        self.student = Student(state, bool(features))
        activations = state.activations
        # Nothing below a step of their grid can be told apart.
        self._least_squares = {
            name: activations.host_grid(name).scale ** 2
            if activations.has_range(name)
            else torch.finfo(torch.float32).tiny
            for name in self.student.outputs.names
        }

    def renew_student(self) -> None:
        """Makes a student of the present state: it keeps what it has folded."""
        self.student = Student(self._state, bool(self.features))

    @torch.no_grad()
    def reference(
        self, batch: Any, key: Any = None, features: bool = True
    ) -> Reference:
        """What the teacher gives for a batch.

        Args:
            batch (Any): As a dataloader yields it.
            key (Any): Of the batch, if it comes again: its outputs are held where
                there is room for them.
            features (bool): Whether features are needed too, where there are any.
        """
        if key is not None and key in self._held:
            return self._held[key]
        with NotedSelections(self.teacher.outputs) as noted:
            self.run(self.teacher, batch)
        outputs = self.teacher.outputs.take()
        selections = noted.before(len(outputs))
        outputs = self._without_boxes(outputs, batch)
        if not features:
            unused = self.teacher.outputs.features
            outputs = [item for item in outputs if item[0] not in unused]
        for name, x in outputs:
            total, count = self._squares.get(name, (0.0, 0.0))
            square = x.float().square().mean()
            finite = square.isfinite()
            total = total + torch.where(finite, square, torch.zeros_like(square))
            self._squares[name] = total, count + finite.float()
        reference = Reference(outputs, selections)
        known = (*self._held.values(), reference)
        fits = sum(x.numel() for part in known for _, x in part.outputs) <= MAX_HELD
        if key is not None and fits:
            self._held[key] = reference
        return reference

    def _without_boxes(self, kept: Kept, batch: Any) -> Kept:
        """What is of the images, where outputs are: the rest is of proposed boxes.

        Which these are, and in which order, NMS decides, for teacher and student.
        """
        # As MMEngine calls a model with it.
        named = batch if isinstance(batch, Mapping) else {}
        args = batch if isinstance(batch, (list, tuple)) else (batch,)
        images = count_images(() if named else tuple(args), named)
        found = [item for item in kept if is_of_images(item[1], images)]
        inner = self.teacher.outputs.features
        return found if any(name not in inner for name, _ in found) else kept

    def loss(self, batch: Any, reference: Reference) -> Tensor | None:
        """Of the student on a batch: see :func:`output_loss`; features have a part.

        They have it in its gradients, not in its value.
        """
        found, error = self._compared(batch, reference)
        names = self.student.outputs.features
        if error is None or not names:
            return error
        inner = [item for item in found if item[0] in names]
        on_the_way = output_loss(inner, reference.outputs, self._least())
        if on_the_way is None:
            return error
        # Where outputs are means of many features, these have far more noise.
        most = MOST_FEATURES * error / on_the_way.clamp(min=TINY)
        share = self.features * most.clamp(max=1.0).detach()
        return error + share * (on_the_way - on_the_way.detach())

    def _compared(self, batch: Any, reference: Reference) -> tuple[Kept, Tensor | None]:
        """What the student gives for a batch, and the error of its outputs."""
        with imposed(reference.selections):
            self.run(self.student, batch)
        found = self.student.outputs.take()
        names = self.student.outputs.features
        outputs = [item for item in found if item[0] not in names]
        return found, output_loss(outputs, reference.outputs, self._least())

    @torch.no_grad()
    def mean(self, batches: Iterable[tuple[Any, Any]]) -> float | None:
        """Mean error of the outputs over batches in which the float outputs are finite.

        Args:
            batches (Iterable): Keys and batches; equally many in each process.

        Returns:
            float, optional: Of all processes; None where nothing can be compared.
        """
        batches = list(batches)
        # First all references: what is small is judged by all images.
        references = [self.reference(batch, key, False) for key, batch in batches]
        totals = torch.zeros(2)
        for (_, batch), reference in zip(batches, references):
            _, loss = self._compared(batch, reference)
            finite = all(x.isfinite().all() for _, x in reference.outputs)
            if loss is not None and finite:
                totals += torch.stack([loss.cpu(), torch.ones(())])
        if is_distributed():
            totals = totals.to(self._state.bias_correction.device)
            dist.all_reduce(totals)
        total, count = totals.tolist()
        return total / count if count else None

    def _least(self) -> dict[str, Tensor]:
        """What the mean squares of outputs count as at least, by quantizer."""
        return {
            name: (LEAST_ENERGY * total / count.clamp(min=1)).clamp(
                min=self._least_squares[name]
            )
            for name, (total, count) in self._squares.items()
        }

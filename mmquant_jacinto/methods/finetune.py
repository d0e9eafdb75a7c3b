"""Fine-tune: all weights, biases and scales together, for the float model's outputs.

As in QFT (Finkelstein et al., arXiv 2212.02634), which trains all degrees of freedom of
a quantized network end to end, on a few unlabelled images: the student is the
fake-quantized model with learned scales, its batch normalization folded; the teacher is
the same model in float, with the weights that it had before anything was calibrated.
What is brought together is what leaves the network; what decodes it takes no part. At
first what layers read on the way is, too, as blocks are in BRECQ (Li et al., arXiv
2102.05426): from few images outputs alone are learned by heart.
Images that come again are seen differently, and some are kept to judge by: where those
have come no nearer to float, all is put back.

The float model is the reference, so a calibration knows how far its outputs are from
where they were. With fewer than 8 bits it goes on with this by itself where that is
far; with more that is for the user to act on.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from ..config.sections import Finetune
from ..config.widths import ENOUGH_BITS
from ..errors import UntrainableError
from ..execute.behaviour import Behaviour
from ..execute.state import State
from ..plan.plan import Plan
from ..quantizers.layers import channel_rows
from ..quantizers.observers import is_distributed
from .image_views import has_views, image_view
from .judged_corrections import judges
from .output_error import OutputError, Reference

REPORTS = 10  # lines in the log
# What the error of what layers read counts at first, beside that of the outputs; less
# with each iteration.
FEATURES = 1.0
# Iterations after which the log says how long the others take.
TIMED = 5
# Seeds of views of an image, which differ by how often it was seen.
VIEWS = 2**16
# Squared error of the outputs over their square, mean over outputs: 20 dB for few bits,
# by docs/results.md (W4A4); 15 for others, which are only told.
BOUND, FAR = 10**-2, 10**-1.5
# Batches that it is measured on, where none are held out.
MEASURED = 8


class View(NamedTuple):
    """What an iteration trains on.

    Args:
        batch (Any): As a dataloader yields it, or a view of it.
        key (Any): What it is known by if it comes again; None if it does not.
    """

    batch: Any
    key: Any


def views(batches: Sequence[Any], augment: bool) -> Iterator[View]:
    """Batches to train on, again and again; from the second time on, views of them.

    Args:
        batches (Sequence): Gives the same batches each time.
        augment (bool): Whether there are views.
    """
    first = judges(len(batches))
    for visit in itertools.count():
        for index, batch in enumerate(batches):
            if index < first:
                continue
            if not (augment and has_views(batch)):
                yield View(batch, index)
            elif visit == 0:
                yield View(batch, None)
            else:
                yield View(image_view(batch, index * VIEWS + visit % VIEWS), None)


@torch.no_grad()
def put_back(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Gives parameters the values that they had."""
    for parameter, value in zip(parameters, values):
        parameter.copy_(value)


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
        self.options = options
        self.error = OutputError(state, run, FEATURES)
        self.student = self.error.student
        with torch.no_grad():
            self.student.begin()

    def train(self, batches: Sequence[Any]) -> list[float]:
        """Trains on as many batches as there are iterations.

        Of eight batches or more some are not trained on. Where these have come no
        nearer to float, all is put back as it was.

        Args:
            batches (Sequence): Gives the same batches each time.

        Returns:
            List[float]: The loss of each iteration, mean of all processes. Those in
            which the float model gave NaN or infinity are left out.

        Raises:
            UntrainableError: If the loss is not finite, or no output can be compared.
        """
        judged = list(enumerate(itertools.islice(batches, judges(len(batches)))))
        before = self.error.mean(judged) if judged else None
        with self._leaves() as (optimizer, parameters):
            known = [parameter.detach().clone() for parameter in parameters]
            try:
                history = self._train(batches, optimizer, parameters)
            except UntrainableError:
                put_back(parameters, known)
                raise
            self._place_biases()
            after = self.error.mean(judged) if judged else None
            if before is not None and not (after is not None and after < before):
                print_log(
                    f'Fine-tuning: images that it was not trained on are at {after} '
                    f'of {before:.5f} before: all is as it was calibrated.',
                    'current',
                    logging.WARNING,
                )
                put_back(parameters, known)
            elif before is not None:
                print_log(
                    'Fine-tuning: on images that it was not trained on the error went '
                    f'from {before:.5f} to {after:.5f}.',
                    'current',
                )
        return history

    def _train(
        self,
        batches: Sequence[Any],
        optimizer: torch.optim.Optimizer,
        parameters: list[Tensor],
    ) -> list[float]:
        """All iterations; see :meth:`train`."""
        total = self.options.iterations
        every = math.ceil(total / REPORTS)
        history: list[float] = []
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        steps = itertools.islice(views(batches, self.options.augment), total)
        start = time.monotonic()
        for done, (batch, key) in enumerate(steps, 1):
            # In the end outputs are all that counts.
            self.error.features = FEATURES * (1 - (done / total) ** 2)
            reference = self.error.reference(batch, key)
            loss = self._descend(batch, reference, parameters)
            if loss is not None:
                history.append(loss)
                optimizer.step()
                schedule.step()
            if done == TIMED < total:
                left = (time.monotonic() - start) / TIMED * (total - TIMED)
                print_log(f'Fine-tuning: about {left:.0f} s are left.', 'current')
            if history and (done % every == 0 or done == total):
                recent = history[-every:]
                print_log(
                    f'Fine-tuning: iteration {done} of {total}, '
                    f'loss {sum(recent) / len(recent):.5f}',
                    'current',
                )
        if not history:
            raise UntrainableError(
                'quantize.finetune: the float model gives NaN or infinity on every '
                'calibration image; check the checkpoint (load_from) and the '
                'normalization of the images'
            )
        return history

    def _gradients(
        self, batch: Any, reference: Reference, parameters: list[Tensor]
    ) -> Tensor:
        """Whether outputs were compared, whether they count, loss and gradients.

        All zero where nothing can be compared, all but the first where the float
        model's outputs are not finite.
        """
        with torch.enable_grad():
            self._place_biases()
            loss = self.error.loss(batch, reference)
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
        counts = torch.stack([x.isfinite().all() for _, x in reference.outputs]).all()
        return torch.cat(
            [one, torch.where(counts, torch.cat([one, loss[None], *grads]), flat[1:])]
        ).detach()

    def _descend(
        self, batch: Any, reference: Reference, parameters: list[Tensor]
    ) -> float | None:
        """Gives the parameters their gradients, means of all processes."""
        flat = self._gradients(batch, reference, parameters)
        if is_distributed():
            dist.all_reduce(flat)
        compared, count, loss_sum = flat[:3].tolist()
        if not compared:
            raise UntrainableError(
                'quantize.finetune has nothing to compare: no output of the network '
                'has a gradient, and the same shape in float and quantized; leave it '
                'away'
            )
        if not count:
            return None
        if not math.isfinite(loss_sum):
            raise UntrainableError(
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


def has_few_bits(plan: Plan) -> bool:
    """Whether any grid has, or may yet get, fewer than :data:`ENOUGH_BITS`."""
    narrow = any(spec.format.bits < ENOUGH_BITS for spec in plan.specs)
    return narrow or bool(plan.undecided)


def decibels(error: float) -> float:
    """A relative squared error as signal over noise."""
    return -10 * math.log10(error) if error > 0 else math.inf


def decide(plan: Plan, error: float | None, batches: int) -> bool:
    """Whether a calibrated model is to be fine-tuned, and says why in the log.

    Args:
        plan (Plan): Of the model.
        error (float, optional): Of its outputs, see
            :class:`~mmquant_jacinto.methods.output_error.OutputError`, the same in all
            processes. None: no output can be compared.
        batches (int): That it was measured on.

    Returns:
        bool: The same in all processes.
    """
    if error is None or not math.isfinite(error):
        told = 'can be compared' if error is None else 'is finite'
        print_log(
            f'Fine-tuning: no output of the network {told}, quantized and in float; '
            'it is left as it is calibrated.',
            'current',
        )
        return False
    found = (
        f'Fine-tuning: on {batches} batches the outputs are {decibels(error):.1f} dB '
        f'from float (error {error:.5f})'
    )
    few = has_few_bits(plan)
    least = BOUND if few else FAR
    bound = f'{decibels(least):g} dB'
    if error <= least:
        print_log(f'{found}, no less than {bound}: none.', 'current')
        return False
    if not few:
        print_log(
            f'{found}, less than {bound}. quantize.finetune=True trains weights, '
            'biases and scales for them, without labels; with '
            f'{ENOUGH_BITS} bits and more only where it is asked for.',
            'current',
            logging.WARNING,
        )
        return False
    print_log(
        f'{found}, less than {bound}, and there are fewer than {ENOUGH_BITS} bits: '
        'weights, biases and scales are trained for them, without labels. '
        'quantize.finetune=False leaves the network as it is now.',
        'current',
    )
    return True

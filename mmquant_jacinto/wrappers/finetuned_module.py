"""A wrapper whose model can be fine-tuned for what it gave in float."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import Tensor
from torch.func import functional_call

from ..config.sections import Finetune
from ..errors import QuantizeError, UntrainableError
from ..execute.behaviour import Behaviour
from ..methods.finetune import Finetuning, decide, has_few_bits
from ..methods.judged_corrections import Judgement, keep_if_nearer
from ..methods.network_outputs import FloatOutputs
from ..methods.output_error import OutputError
from .quant_module import QuantModule


class FinetunedModule(QuantModule):
    """A model that can be fine-tuned for what it gave in float."""

    _float_weights: dict[str, Tensor] | None = None

    @property
    def may_finetune(self) -> bool:
        """bool: Whether a calibration may go on with fine-tuning by itself."""
        plan = self.plan
        return self.config.may_finetune and plan is not None and has_few_bits(plan)

    def keep_float_weights(self) -> None:
        """Keeps the weights, if they are asked for, before anything changes them."""
        rounds = self.config.rounding.method != 'nearest'
        is_asked = self.config.finetune or rounds or self.may_finetune
        if is_asked and self._float_weights is None:
            self._float_weights = {
                name: parameter.detach().clone()
                for name, parameter in self.module.named_parameters()
            }

    def finetune(self, batches: Sequence[Any]) -> list[float]:
        """Trains weights, biases and scales: ``quantize.finetune``.

        The last step of a calibration; see :class:`Finetuning`.

        Args:
            batches (Sequence): Gives the same batches of a dataloader each time it
                is iterated over; equally many in each process.

        Returns:
            List[float]: The loss of each iteration.

        Raises:
            QuantizeError: If ``quantize.finetune`` is not set (and bits are not so few
                that it need not be), if nothing is calibrated yet, if no output can
                be compared, or if the loss is not finite.
        """
        options = self.config.finetune
        if options is None and self.may_finetune:
            options = Finetune()
        if not options or self._float_weights is None or not len(batches):
            raise QuantizeError(
                'finetune() trains a calibrated model with learned scales; set '
                'finetune=True, calibrate on some batches before, and give it some'
            )
        if not self.plan.is_learned:
            self.quantization.learn_scales()
        history = Finetuning(self.quantization, self._run_with, options).train(batches)
        # What the former phase computed is of the former weights.
        self.quantization.set_phase(self.quantization.phase)
        return history

    def finetune_if_far(
        self, batches: Sequence[Any], measured: int, judgement: Judgement | None
    ) -> None:
        """Fine-tunes where bits are few and outputs far from float, unless told.

        Where nothing can be learned the model stays as it is calibrated.

        Args:
            batches (Sequence): See :meth:`finetune`.
            measured (int): How many of them, the first, tell how far the outputs are.
            judgement (Judgement, optional): Of corrections, which they have told
                already; else it is measured where bits are few.
        """
        if judgement is not None and self.config.may_finetune:
            error = judgement.error
        elif self.may_finetune:
            error = self.output_error(list(itertools.islice(batches, measured)))
        else:
            return
        if not decide(self.plan, error, measured):
            return
        try:
            self.finetune(batches)
        except UntrainableError as reason:
            print_log(
                f'Fine-tuning: {reason}. The network is left as it is calibrated.',
                'current',
                logging.WARNING,
            )

    def output_error(self, batches: Sequence[Any]) -> float | None:
        """How far the outputs are from float: :meth:`OutputError.mean`.

        Args:
            batches (Sequence): Of a dataloader, equally many in each process.

        Returns:
            float, optional: Squared error over squared outputs; None where no output
            can be compared.
        """
        error = OutputError(self.quantization, self._run_with)
        found = error.mean(enumerate(batches))
        self.quantization.set_phase(self.quantization.phase)
        return found

    def judge_corrections(self, batches: Sequence[Any]) -> Judgement:
        """Takes corrections back where images lose by them: :func:`keep_if_nearer`.

        Args:
            batches (Sequence): Of a dataloader, none of which anything was corrected
                by; equally many in each process.

        Returns:
            Judgement: Whether the corrections are kept.
        """
        judgement = keep_if_nearer(self.quantization, self._run_with, batches)
        self.quantization.set_phase(self.quantization.phase)
        return judgement

    def _run_with(self, behaviour: Behaviour, batch: Any) -> None:
        """Runs the model; with the float weights, where that is its behaviour."""
        self.quantization.executor.behaviour = behaviour
        # A preprocessor may change its batch in place.
        args, call = self.arguments(copy.deepcopy(batch))
        if isinstance(behaviour, FloatOutputs) and self._float_weights is not None:
            functional_call(self.module, self._float_weights, args, call)
        else:
            self.module(*args, **call)

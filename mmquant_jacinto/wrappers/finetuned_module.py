"""A wrapper whose model can be fine-tuned for what it gave in float."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.func import functional_call

from ..errors import QuantizeError
from ..execute.behaviour import Behaviour
from ..methods.finetune import Finetuning
from ..methods.judged_corrections import keep_if_nearer
from ..methods.network_outputs import FloatOutputs
from .quant_module import QuantModule


class FinetunedModule(QuantModule):
    """A model that can be fine-tuned for what it gave in float."""

    _float_weights: dict[str, Tensor] | None = None

    def keep_float_weights(self) -> None:
        """Keeps the weights, if they are asked for, before anything changes them."""
        rounds = self.config.rounding.method != 'nearest'
        is_asked = self.config.finetune or rounds
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
            QuantizeError: If ``quantize.finetune`` is not set, if nothing is calibrated
                yet, if no output can be compared, or if the loss is not finite.
        """
        options = self.config.finetune
        if not options or self._float_weights is None or not len(batches):
            raise QuantizeError(
                'finetune() trains a calibrated model with learned scales; set '
                'finetune=True, calibrate on some batches before, and give it some'
            )
        history = Finetuning(self.quantization, self._run_with, options).train(batches)
        # What the former phase computed is of the former weights.
        self.quantization.set_phase(self.quantization.phase)
        return history

    def judge_corrections(self, batches: Sequence[Any]) -> bool:
        """Takes corrections back where images lose by them: :func:`keep_if_nearer`.

        Args:
            batches (Sequence): Of a dataloader, none of which anything was corrected
                by; equally many in each process.

        Returns:
            bool: Whether the corrections are kept.
        """
        is_kept = keep_if_nearer(self.quantization, self._run_with, batches)
        self.quantization.set_phase(self.quantization.phase)
        return is_kept

    def _run_with(self, behaviour: Behaviour, batch: Any) -> None:
        """Runs the model; with the float weights, where that is its behaviour."""
        self.quantization.executor.behaviour = behaviour
        # A preprocessor may change its batch in place.
        args, call = self.arguments(copy.deepcopy(batch))
        if isinstance(behaviour, FloatOutputs) and self._float_weights is not None:
            functional_call(self.module, self._float_weights, args, call)
        else:
            self.module(*args, **call)

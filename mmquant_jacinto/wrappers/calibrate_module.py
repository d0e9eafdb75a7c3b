"""The wrapper for post-training calibration."""

import copy
import functools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Callable, Optional, cast

import torch
from mmengine.dist import get_rank
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from ..config.max_drop import FILE as MAX_DROP_FILE
from ..config.mixed_precision import FILE, MixedPrecision
from ..config.quantize_config import QuantizeConfig
from ..errors import QuantizeError
from ..execute import quantization as phases
from ..execute.behaviour import Behaviour
from ..execute.calibrate import Correct, Observe
from ..execute.corrections.analytic_correction import MeanInputs
from ..methods.layer_samples import Enough
from ..methods.mixed_precision import BitSearch, BitTable
from ..methods.reconstruction import Reconstruction
from .distillation import check_distillation
from .finetuned_module import FinetunedModule
from .prepare import plan_recorded, quantize_model


@MODEL_WRAPPERS.register_module()
class QuantCalibrateModule(FinetunedModule):
    """Post-training calibration: ranges and bias correction.

    In training mode each forward call runs the model twice on its batch, in
    float (measuring ranges and each layer's mean output) and quantized
    (correcting the biases), without gradients, and returns the quantized
    result. ``CalibrationLoop`` makes the two passes one after the other over
    all batches, so that all ranges are known before the first correction.
    Widths that ``mixed_precision`` leaves open are chosen before, by
    :meth:`search_bits`. Evaluation computes on integers. What is corrected, and how,
    is said by ``calibration=dict(...)``, see
    :class:`~mmquant_jacinto.config.sections.Calibration`.

    Args:
        module (nn.Module): The float model.
        dummy_input (Any): See :class:`QuantModule`.
        **quantize: The keys of ``quantize=dict(...)``.

    Examples:
        >>> calib = QuantCalibrateModule(model, dummy_input=x, bits=8)
        >>> calib.train()
        >>> for images in batches:
        ...     calib(images)
        >>> calib.eval()
    """

    mode = 'ptq'
    _corrections = 0  # passes that corrected biases
    _has_factors = False

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        self.quantization.calibration = self.config.calibration
        asked = bool(self.config.finetune)
        self.quantization.may_learn = asked or self.config.may_finetune
        self._inputs = MeanInputs()

    @property
    def train_phase(self) -> str:
        return phases.OBSERVE

    def train(self, mode: bool = True) -> 'QuantCalibrateModule':
        super().train(mode)
        # Statistics and dropout are those of inference throughout.
        self.module.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.plan is not None and self.plan.undecided:
            raise QuantizeError(
                'the widths of quantize.mixed_precision are not chosen yet; call '
                'search_bits(batches) before anything else'
            )
        if not self.training:
            return super().forward(*args, **kwargs)
        if self.config.keeps_budget or self.config.keeps_latency:
            key = 'max_drop' if self.config.keeps_budget else 'mixed_precision.latency'
            file = MAX_DROP_FILE if self.config.keeps_budget else FILE
            raise QuantizeError(
                f'quantize.{key} is kept by the calibration of a QuantRunner; use '
                f'that, or give the {file} that it leaves'
            )
        # Ranges that are there are of the channels as they are.
        if not (self._has_factors or self.quantization.has_ranges):
            self.measure_channels([lambda: self.module(*args, **kwargs)])
        reference = self.observe(*args, **kwargs)
        if self.config.calibration.passes:
            lr = self.config.calibration.lr
            result = self.correct(reference, lr, *args, **kwargs)
        else:
            self._behaviour(phases.CORRECT)
            with torch.no_grad():
                result = self.module(*args, **kwargs)
        self.correct_analytically()
        return result

    def plan_anew(self, config: QuantizeConfig) -> None:
        """Starts from the beginning with other settings; nothing is recorded anew.

        Args:
            config (QuantizeConfig): In place of the present one.

        Raises:
            QuantizeError: If the model was never prepared, or cannot be planned so.
        """
        if self._graph is None:
            raise QuantizeError('there is nothing to plan anew; call prepare() first')
        root = self.quantization.root
        plan = plan_recorded(self._graph, root, config)
        check_distillation(self.module, plan)
        self.config = config
        self.quantization.calibration = config.calibration
        self._inputs = MeanInputs()
        self._corrections, self._has_factors = 0, False
        self._float_weights = None
        quantize_model(root, plan)
        self._follow_mode()

    def measure_channels(self, passes: Iterable[Callable[[], Any]]) -> None:
        """Finds what channels are divided by, see ``quantize.scale_channels``.

        Ranges are those of the divided channels: it comes before them.

        Args:
            passes (Iterable[Callable]): Each runs the model once, on some images;
                equally many in each process.
        """
        self._has_factors = True
        if self.plan is None or not self.plan.scaled:
            return
        self.keep_float_weights()
        self.quantization.measure_channels(passes)
        self._follow_mode()

    def observe(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One float pass that measures.

        Returns:
            Dict[str, Tensor]: Moments of each layer's output per channel, see
            :func:`~mmquant_jacinto.execute.calibrate.channel_moments`.
        """
        outputs, inputs = self._measure(*args, **kwargs)
        self._inputs.add(inputs)
        return outputs

    def _measure(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Tensor], ...]:
        """One float pass that measures: moments of layers' outputs, mean inputs."""
        self.keep_float_weights()
        behaviour = cast(Observe, self._behaviour(phases.OBSERVE))
        with torch.no_grad():
            self.module(*args, **kwargs)
        return behaviour.outputs.take(), behaviour.inputs.take()

    def correct_analytically(self) -> None:
        """Corrects the biases by what was observed, if the config asks for it.

        Every process must call it equally often.
        """
        if self.config.calibration.is_analytic:
            state = self.quantization
            state.bias_correction.copy_(self._inputs.correction(state))

    def correct(
        self, reference: dict[str, Tensor], lr: float, *args: Any, **kwargs: Any
    ) -> Any:
        """One quantized pass that corrects the biases, and weights if asked to.

        Args:
            reference (Dict[str, Tensor]): Of :meth:`observe`, same batch.
            lr (float): Step.
            args, kwargs: Of the model.

        Returns:
            Any: What the quantized model returns.
        """
        behaviour = cast(Correct, self._behaviour(phases.CORRECT))
        way = self.config.calibration.way_to_correct
        in_order = way is not None and way.in_order
        behaviour.reference = reference if in_order else None
        with torch.no_grad():
            result = self.module(*args, **kwargs)
        self._corrections += 1
        if way is not None:
            lr = way.step(lr, self._corrections)
        behaviour.update(reference, lr)
        return result

    def round_weights(self, batches: Sequence[Any]) -> None:
        """Chooses how weights are rounded: ``quantize.rounding``.

        Ranges must be known; see :mod:`~mmquant_jacinto.methods.reconstruction`.

        Args:
            batches (Sequence): Gives the same batches of a dataloader each time it
                is iterated over; equally many in each process.
        """

        @torch.no_grad()
        def run(behaviour: Behaviour) -> None:
            self.quantization.executor.behaviour = behaviour
            for batch in batches:
                # A preprocessor may change its batch in place.
                args, call = self.arguments(copy.deepcopy(batch))
                with suppress(Enough):
                    self.module(*args, **call)

        options = self.config.rounding
        Reconstruction(self.quantization, run, len(batches), options).reconstruct()
        # What the former phase computed is of the former weights.
        self.quantization.set_phase(self.quantization.phase)

    def search_bits(self, batches: Sequence[Any]) -> BitTable:
        """Chooses the widths that ``mixed_precision`` leaves open.

        Call it before anything else is calibrated; ranges are measured too.

        Args:
            batches (Sequence): Each a tensor, a tuple of positional or a dict of
                keyword arguments of the model; for a model of MMEngine a batch
                as its dataloader yields it. Each gives one sample of the
                sensitivity; some 64 of one image are a good number.

        Returns:
            BitTable: The widths, and why. ``to_json()`` is what another
            model's ``mixed_precision='path'`` reads.

        Raises:
            QuantizeError: If there is no width to choose.
        """
        if not self.plan.undecided:
            raise QuantizeError(
                'there is no width to choose: set mixed_precision=dict('
                'average_bits=...), and call search_bits once'
            )
        if not self._has_factors:
            self.measure_channels(
                functools.partial(self.run_on, batch) for batch in batches
            )
        for batch in batches:
            args, kwargs = self.arguments(copy.deepcopy(batch))
            self.observe(*args, **kwargs)
        config = cast(MixedPrecision, self.config.mixed_precision)
        search = BitSearch(self.quantization, config)
        first = get_rank() * len(batches)
        for seed, batch in enumerate(batches, first):
            self.probe_step(search, copy.deepcopy(batch), seed)
        table = search.finish()
        self._follow_mode()
        return table

    def probe_step(self, search: BitSearch, batch: Any, seed: int) -> None:
        """One batch of a search of widths.

        Args:
            search (BitSearch): Of this model.
            batch (Any): See :meth:`search_bits`.
            seed (int): Another one for each batch of each process.
        """
        args, kwargs = self.arguments(batch)
        search.probe(lambda: self.module(*args, **kwargs), seed)

    def calibrate_step(
        self,
        batch: Any,
        reference: Optional[dict[str, Tensor]],
        lr: float,
        is_held_out: bool = False,
    ) -> dict[str, Tensor]:
        """One batch of the dataloader, for ``CalibrationLoop``.

        Args:
            batch (Any): As the dataloader yields it.
            reference (dict, optional): What this step returned for the batch
                in the pass that measures; None in that pass.
            lr (float): Step of the correction.
            is_held_out (bool): Whether nothing is corrected by the batch, as it is to
                judge corrections; ranges are measured. Defaults to False.

        Returns:
            Dict[str, Tensor]: What :meth:`observe` returns in the pass that
            measures, nothing in one that corrects.
        """
        if is_held_out and reference is not None:
            return {}
        args, kwargs = self.arguments(batch)
        if is_held_out:
            return self._measure(*args, **kwargs)[0]
        if reference is None:
            return self.observe(*args, **kwargs)
        self.correct(reference, lr, *args, **kwargs)
        return {}

    def _behaviour(self, phase: str) -> Behaviour:
        # An unchanged phase keeps what it has computed.
        if self.quantization.phase != phase:
            self.quantization.set_phase(phase)
        return self.quantization.executor.behaviour

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise QuantizeError(
            'calibration has no training step; use train_cfg.type='
            "'CalibrationLoop', which quantize.mode=ptq sets by itself"
        )

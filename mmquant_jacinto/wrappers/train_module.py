"""The wrapper for quantization aware training."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Optional, cast

import torch
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from ..config.sections import Distill, is_number
from ..errors import QuantizeError
from ..execute import quantization as phases
from ..execute.calibrate import Correct, Observe
from ..methods.self_distillation import Taught, Teacher
from .quant_module import QuantModule


@MODEL_WRAPPERS.register_module()
class QuantTrainModule(QuantModule):
    """Quantization aware training.

    Training mode fake-quantizes, evaluation computes on integers. From plain
    PyTorch, each change from ``eval()`` to ``train()`` counts as an epoch for
    the freeze schedule; under MMEngine's runner ``QATHook`` keeps count.

    Args:
        module (nn.Module): The float model.
        dummy_input (Any): See :class:`QuantModule`.
        total_epochs (int, optional): Length of the training, for the freeze
            schedule. None: nothing freezes unless the runner says so.
        distributed (dict, optional): Arguments for DistributedDataParallel
            (``find_unused_parameters``, ...); wraps the model with it.
        **quantize: The keys of ``quantize=dict(...)``.

    Examples:
        >>> model = QuantTrainModule(model, dummy_input=x, total_epochs=12)
        >>> model.train()
        >>> loss = model(images).sum()
        >>> model.eval()
        >>> torch.save(model.module.state_dict(), 'qat.pth')
    """

    mode = 'qat'
    trains = True

    def __init__(
        self,
        module: nn.Module,
        dummy_input: Any = None,
        *,
        total_epochs: Optional[int] = None,
        distributed: Optional[dict] = None,
        **quantize: Any,
    ) -> None:
        if total_epochs is not None and not is_number(total_epochs):
            raise QuantizeError(
                f'total_epochs={total_epochs!r} is not a number of epochs; give that '
                'of the training, or None'
            )
        self.total_epochs = total_epochs
        self.epoch = 0
        self.bn_frozen = self.ranges_frozen = False
        self.teacher: Optional[Teacher] = None
        self._was_evaluated = False
        super().__init__(module, dummy_input, **quantize)
        # Hidden from the module tree: one level of unwrapping gives the
        # float model, as MMEngine expects of a wrapper.
        self._parallel: list[MMDistributedDataParallel] = []
        self.distributed = distributed
        if total_epochs is not None:
            self.set_epoch(0, total_epochs)
            self._follow_mode()
        # Wrapping an evaluated model is no epoch yet.
        self._was_evaluated = False
        if distributed is not None and self.plan is not None:
            self.distribute()

    def distribute(self) -> None:
        """Wraps the prepared model for training on several processes."""
        self._parallel = [MMDistributedDataParallel(self.module, **self.distributed)]

    def teach(self, weights: Mapping[str, Tensor]) -> None:
        """From now on, losses of a training step tell how far float outputs are.

        A model that gives a dict of losses gets one more, ``loss_teacher``. Unless
        ``freeze.bn`` says otherwise, statistics of batch normalization are frozen:
        the teacher's are known.

        Args:
            weights (Mapping[str, Tensor]): All parameters and buffers of the float
                model, by the model's own names.
        """
        given = self.config.distill
        options = given if isinstance(given, Distill) else Distill()
        self.teacher = Teacher(
            self.quantization, weights, options.weight, isinstance(given, Distill)
        )
        self._follow_mode()

    @property
    def train_phase(self) -> phases.Phase:
        return phases.TRAIN if self.teacher is None else Taught

    def _check_teacher(self) -> None:
        if self.teacher is None and isinstance(self.config.distill, Distill):
            raise QuantizeError(
                'quantize.distill is on, and the training has no teacher; call teach() '
                'with the float weights, or train by the runner of MMEngine'
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.check_ranges()
        if self.training:
            self._check_teacher()
            if not self._has_start:
                self._start_from(args, kwargs)
        if self._parallel and self.training:
            return self._parallel[0](*args, **kwargs)
        return self.module(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        self._check_teacher()
        model: Any = self._parallel[0] if self._parallel else self.module
        return model.train_step(*args, **kwargs)

    def no_sync(self) -> Any:
        """Context that keeps gradients local, for gradient accumulation."""
        return self._parallel[0].no_sync() if self._parallel else nullcontext()

    def train(self, mode: bool = True) -> 'QuantTrainModule':
        if mode and self._was_evaluated and self.total_epochs is not None:
            self.set_epoch(self.epoch + 1, self.total_epochs)
        self._was_evaluated = not mode
        super().train(mode)
        return self

    def _follow_mode(self) -> None:
        super()._follow_mode()
        if self.plan is not None:
            for norm in self._norms() if self.bn_frozen else ():
                norm.eval()
            self.quantization.activations.observing = not self.ranges_frozen

    def set_epoch(
        self, epoch: int, total: int, unit: Optional[int] = None
    ) -> list[str]:
        """Freezes what the schedule freezes by the start of an epoch.

        Batch normalization's statistics freeze from epoch total // 2 - 1 on,
        activation ranges from total // 2 + 1 on, as in the Jacinto devkit; of a model
        that has a teacher both from the start on: it stays near what was calibrated.

        Args:
            epoch (int): From 0; may be an iteration, see ``unit``.
            total (int): Length of the training, in the same unit.
            unit (int, optional): How many of them make an epoch of the
                schedule; a twelfth of the training for iterations.

        Returns:
            List[str]: What froze now: ``'bn'``, ``'ranges'``.
        """
        self.epoch = epoch
        freeze = self.config.freeze
        unit = unit or 1
        starts = dict(bn=total // 2 - unit, ranges=total // 2 + unit)
        if self.teacher is not None:
            starts['bn'] = 0
            if not self.quantization.activations.missing():
                starts['ranges'] = 0
        changed = []
        for name, start in starts.items():
            given = getattr(freeze, name)
            start = start if given is None else given
            frozen = given is not False and epoch >= start
            attribute = f'{name}_frozen'
            if frozen and not getattr(self, attribute):
                changed.append(name)
            setattr(self, attribute, frozen)
        return changed

    @property
    def _has_start(self) -> bool:
        """bool: Whether learned scales have, or find by themselves, a first range."""
        activations = self.quantization.activations
        return activations.has_ranges or not (
            self.config.learning and activations.observer.searches
        )

    @torch.no_grad()
    def _start_from(self, args: tuple, kwargs: dict) -> None:
        """Measures a first range on what the model is called with."""
        # Some may be in evaluation on purpose.
        training = [module for module in self.module.modules() if module.training]
        self.module.eval()
        self.quantization.set_phase(phases.OBSERVE)
        self.module(*args, **kwargs)
        for module in training:
            module.training = True
        self._follow_mode()

    @torch.no_grad()
    def measure_start(self, batches: Iterable[Any]) -> None:
        """Finds what channels are divided by, and ranges, before the training.

        Both are measured in float; fake quantizers of others see what they will see
        in training. Where normalization is frozen from the start, biases are
        corrected too: the training starts where a calibration ends.

        Args:
            batches (Iterable): As a dataloader yields them, the same each time it is
                iterated over; equally many in each process.
        """
        training = self.training
        self.module.eval()
        quantization = self.quantization
        given = self.config.calibration
        # A training moves weights itself; only biases may be in front of what it keeps.
        quantization.calibration = replace(given, weights=bool(given.weights))
        if quantization.fake_quants is not None:
            quantization.set_phase(phases.TRAIN)
            quantization.activations.observing = False
        else:
            if self.plan.scaled:
                quantization.measure_channels(
                    functools.partial(self.run_on, batch) for batch in batches
                )
            quantization.set_phase(phases.OBSERVE)
        references = []
        with self._start_observers():
            for batch in batches:
                self.run_on(batch)
                if self._corrects_start:
                    behaviour = cast(Observe, quantization.executor.behaviour)
                    references.append(behaviour.outputs.take())
        if references:
            self._correct_start(batches, references)
        nn.Module.train(self, training)
        self._follow_mode()

    def _start_observers(self) -> AbstractContextManager:
        """Context in which ranges that stay are found as a calibration finds them."""
        config, activations = self.config, self.quantization.activations
        stays = self._freezes_at_once(config.freeze.ranges)
        # What learned scales start from is found so anyway.
        if not stays or config.learning or self.quantization.fake_quants is not None:
            return nullcontext()
        widths = [spec.format.bits for spec in activations.specs]
        observers = config.observers_of(widths, stays=True)
        print_log(f'They stay: {" and ".join(observers.values())}.', 'current')
        return activations.observed_by(percentile=config.percentile, **observers)

    def _freezes_at_once(self, epoch: Any) -> bool:
        """Whether what is to freeze from this epoch on does so from the start."""
        # False, for never, equals 0.
        return self.teacher is not None and epoch is not False and not epoch

    @property
    def _corrects_start(self) -> bool:
        is_frozen = self._freezes_at_once(self.config.freeze.bn)
        calibration = self.config.calibration
        corrects = calibration.passes and calibration.corrects_biases
        return bool(is_frozen and corrects and self.quantization.fake_quants is None)

    def _correct_start(
        self, batches: Iterable[Any], references: list[dict[str, Tensor]]
    ) -> None:
        """Moves biases to the float means, as a pass of a calibration does."""
        calibration, quantization = self.config.calibration, self.quantization
        quantization.set_phase(phases.CORRECT)
        behaviour = cast(Correct, quantization.executor.behaviour)
        way = calibration.way_to_correct
        for count, (batch, reference) in enumerate(zip(batches, references), 1):
            behaviour.reference = reference if way.in_order else None
            self.run_on(batch)
            behaviour.update(reference, way.step(calibration.lr, count))

    def _norms(self) -> Iterator[nn.Module]:
        return (
            layer.norm
            for layer in self.quantization.layers.values()
            if layer.norm is not None
        )

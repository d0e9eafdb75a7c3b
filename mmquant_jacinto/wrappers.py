"""The seed's modules: a model wrapped for training, calibration or test."""

import warnings
from collections.abc import Iterator
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

from . import quantization as phases
from .config import QuantizeConfig
from .errors import QuantizeError
from .execute import Behaviour
from .plan import Plan
from .prepare import plan_model, probe_passes, quantize_model
from .quantization import Quantization
from .summary import summarize


class QuantModule(nn.Module):
    """A float model and its quantization; base of the wrappers.

    ``module`` is the float model with its own names; it carries the
    quantizers as its child ``quantization``, so ``module.state_dict()`` has
    the float names plus the quantizer state.

    Args:
        module (nn.Module): The float model.
        dummy_input (Any): An image tensor (N, C, H, W), or a batch as the
            dataloader yields it. Without one the plan comes from the first
            checkpoint that is loaded, or from :meth:`prepare`.
        config (QuantizeConfig, optional): In place of the keywords.
        **quantize: The keys of ``quantize=dict(...)``, see
            :class:`~mmquant_jacinto.config.QuantizeConfig`.

    Raises:
        QuantizeError: If a keyword is unknown or has a bad value, or if the
            model has nothing to quantize.
    """

    mode: Optional[str] = None
    eval_phase = phases.TEST

    def __init__(self, module: nn.Module, dummy_input: Any = None, *,
                 config: Optional[QuantizeConfig] = None,
                 **quantize: Any) -> None:
        super().__init__()
        if self.mode is not None:
            quantize.setdefault('mode', self.mode)
        self.config = config or QuantizeConfig.parse(quantize or True)
        self.module = module
        # Test-time augmentation wraps the model once more.
        self._carrier = (module.module if isinstance(module, BaseTTAModel)
                         else module, )
        if Quantization.of(self._carrier[0]) is None:
            Quantization(self._carrier[0])
        # A new module is in training mode, whatever its child is in.
        self.training = module.training
        if dummy_input is not None:
            self.prepare(dummy_input)
        self.train(self.training)

    @property
    def quantization(self) -> Quantization:
        """Quantization: What the model carries."""
        return Quantization.of(self._carrier[0])

    @property
    def plan(self) -> Optional[Plan]:
        """Plan: None before :meth:`prepare`."""
        return self.quantization.plan

    def prepare(self, dummy_input: Any, training_input: Any = None) -> Plan:
        """Records the model on an input, and plans its quantization.

        Args:
            dummy_input (Any): See the constructor.
            training_input (Any, optional): Another batch to see the modules
                on that run only in training. Defaults to the first.

        Returns:
            Plan: What is quantized, and how.
        """
        root = self.quantization.root
        passes = probe_passes(root, self.as_batch(dummy_input),
                              None if training_input is None
                              else self.as_batch(training_input))
        plan = plan_model(root, passes, self.config)
        quantize_model(root, plan)
        self._follow_mode()
        print_log(summarize(plan), 'current')
        return plan

    def as_batch(self, dummy_input: Any) -> Any:
        """Makes an input that the model's ``data_preprocessor`` takes."""
        return dummy_input

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model; any signature and mode that it has."""
        self.check_ranges()
        return self.module(*args, **kwargs)

    def check_ranges(self) -> None:
        """Checks that there is something to compute with.

        Raises:
            QuantizeError: In evaluation, if no range was ever measured.
        """
        quantization = self.quantization
        if quantization.phase == phases.TEST \
                and not quantization.has_ranges:
            raise QuantizeError(
                'there are no quantization ranges in this model or its '
                'checkpoint; train it with quantize.mode=qat or calibrate it '
                'with quantize.mode=ptq, starting from the float checkpoint '
                '(load_from=...), and test the checkpoint that gives')

    def train(self, mode: bool = True) -> 'QuantModule':
        """Switches between the wrapper's own phase and integer evaluation."""
        super().train(mode)
        self._follow_mode()
        return self

    def _follow_mode(self) -> None:
        """Brings the quantization in line with ``training``."""
        self.quantization.set_phase(
            self.train_phase if self.training else self.eval_phase)

    @property
    def train_phase(self) -> str:
        """str: What the model computes in training mode."""
        return phases.TEST

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """MMEngine's training step of the model."""
        return self.module.train_step(*args, **kwargs)

    def val_step(self, *args: Any, **kwargs: Any) -> Any:
        """MMEngine's validation step of the model."""
        self.check_ranges()
        return self.module.val_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """MMEngine's test step of the model."""
        self.check_ranges()
        return self.module.test_step(*args, **kwargs)


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

    def __init__(self, module: nn.Module, dummy_input: Any = None, *,
                 total_epochs: Optional[int] = None,
                 distributed: Optional[dict] = None,
                 **quantize: Any) -> None:
        self.total_epochs = total_epochs
        self.epoch = 0
        self.bn_frozen = self.ranges_frozen = False
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
        self._parallel = [MMDistributedDataParallel(
            self.module, **self.distributed)]

    @property
    def train_phase(self) -> str:
        return phases.TRAIN

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.check_ranges()
        if self._parallel and self.training:
            return self._parallel[0](*args, **kwargs)
        return self.module(*args, **kwargs)

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        model = self._parallel[0] if self._parallel else self.module
        return model.train_step(*args, **kwargs)

    def no_sync(self) -> Any:
        """Context that keeps gradients local, for gradient accumulation."""
        return self._parallel[0].no_sync()

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

    def set_epoch(self, epoch: int, total: int,
                  unit: Optional[int] = None) -> list[str]:
        """Freezes what the schedule freezes by the start of an epoch.

        Batch normalization's statistics freeze from epoch total // 2 - 1 on,
        activation ranges from total // 2 + 1 on, as in the Jacinto devkit.

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

    def _norms(self) -> Iterator[nn.Module]:
        return (layer.norm for layer in self.quantization.layers.values()
                if layer.norm is not None)


@MODEL_WRAPPERS.register_module()
class QuantCalibrateModule(QuantModule):
    """Post-training calibration: ranges and bias correction.

    In training mode each forward call runs the model twice on its batch, in
    float (measuring ranges and each layer's mean output) and quantized
    (correcting the biases), without gradients, and returns the quantized
    result. ``CalibrationLoop`` makes the two passes one after the other over
    all batches, so that all ranges are known before the first correction.
    Evaluation computes on integers.

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

    @property
    def train_phase(self) -> str:
        return phases.OBSERVE

    def train(self, mode: bool = True) -> 'QuantCalibrateModule':
        super().train(mode)
        # Statistics and dropout are those of inference throughout.
        self.module.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return super().forward(*args, **kwargs)
        reference = self.observe(*args, **kwargs)
        if self.config.calibration.epochs:
            return self.correct(reference, self.config.calibration.lr, *args,
                                **kwargs)
        self._behaviour(phases.CORRECT)
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def observe(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """One float pass that measures.

        Returns:
            Dict[str, Tensor]: Each layer's mean output per channel, (C,).
        """
        behaviour = self._behaviour(phases.OBSERVE)
        with torch.no_grad():
            self.module(*args, **kwargs)
        return behaviour.means.take()

    def correct(self, reference: dict[str, Tensor], lr: float, *args: Any,
                **kwargs: Any) -> Any:
        """One quantized pass that corrects the biases.

        Args:
            reference (Dict[str, Tensor]): Of :meth:`observe`, same batch.
            lr (float): Step.
            *args, **kwargs: Of the model.

        Returns:
            Any: What the quantized model returns.
        """
        behaviour = self._behaviour(phases.CORRECT)
        with torch.no_grad():
            result = self.module(*args, **kwargs)
        behaviour.update(reference, lr)
        return result

    def calibrate_step(self, batch: Any,
                       reference: Optional[dict[str, Tensor]],
                       lr: float) -> dict[str, Tensor]:
        """One batch of the dataloader, for ``CalibrationLoop``.

        Args:
            batch (Any): As the dataloader yields it.
            reference (dict, optional): What this step returned for the batch
                in the pass that measures; None in that pass.
            lr (float): Step of the correction.

        Returns:
            Dict[str, Tensor]: The layers' mean outputs in the pass that
            measures, nothing in one that corrects.
        """
        data = self.module.data_preprocessor(batch, False)
        call = dict(data) if isinstance(data, dict) else {}
        args = () if isinstance(data, dict) else tuple(data)
        if reference is None:
            return self.observe(*args, **call, mode='predict')
        self.correct(reference, lr, *args, **call, mode='predict')
        return {}

    def _behaviour(self, phase: str) -> Behaviour:
        # An unchanged phase keeps what it has computed.
        if self.quantization.phase != phase:
            self.quantization.set_phase(phase)
        return self.quantization.executor.behaviour

    def train_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        raise QuantizeError(
            "calibration has no training step; use train_cfg.type="
            "'CalibrationLoop', which quantize.mode=ptq sets by itself")


@MODEL_WRAPPERS.register_module()
class QuantTestModule(QuantModule):
    """Test of a calibrated or trained model, on integers.

    Args:
        module (nn.Module): The float model.
        dummy_input (Any): See :class:`QuantModule`; not needed where a
            quantized checkpoint is loaded, which brings its plan.
        **quantize: The keys of ``quantize=dict(...)``.
    """


class _MMDet:
    """What is particular to mmdet: a bare image tensor needs data samples."""

    def as_batch(self, dummy_input: Any) -> Any:
        if not isinstance(dummy_input, Tensor):
            return dummy_input
        from mmdet.structures import DetDataSample
        images = dummy_input
        height, width = images.shape[-2:]
        meta = dict(img_shape=(height, width), ori_shape=(height, width),
                    pad_shape=(height, width), scale_factor=(1.0, 1.0),
                    img_id=0, img_path='')
        return dict(inputs=list(images), data_samples=[
            DetDataSample(metainfo=dict(meta)) for _ in images])


@MODEL_WRAPPERS.register_module()
class MMDetQuantTrainModule(_MMDet, QuantTrainModule):
    """:class:`QuantTrainModule` for mmdet's detectors."""


@MODEL_WRAPPERS.register_module()
class MMDetQuantCalibrateModule(_MMDet, QuantCalibrateModule):
    """:class:`QuantCalibrateModule` for mmdet's detectors."""


@MODEL_WRAPPERS.register_module()
class MMDetQuantTestModule(_MMDet, QuantTestModule):
    """:class:`QuantTestModule` for mmdet's detectors."""


_KINDS = {
    'train': (QuantTrainModule, MMDetQuantTrainModule),
    'calibrate': (QuantCalibrateModule, MMDetQuantCalibrateModule),
    'test': (QuantTestModule, MMDetQuantTestModule),
}


def wrapper_class(model: nn.Module, phase: str) -> type[QuantModule]:
    """The wrapper for a model and a phase.

    Args:
        model (nn.Module): The float model.
        phase (str): ``'train'``, ``'calibrate'`` or ``'test'``.
    """
    general, mmdet = _KINDS[phase]
    names = {base.__module__.partition('.')[0]
             for base in type(model).__mro__}
    return mmdet if 'mmdet' in names else general


_PLURALS = {f'{cls.__name__}s': cls for cls in (
    MMDetQuantTrainModule, MMDetQuantCalibrateModule, MMDetQuantTestModule)}


def __getattr__(name: str) -> Any:
    if name in _PLURALS:
        warnings.warn(f'{name} is deprecated, use {name[:-1]}',
                      DeprecationWarning, stacklevel=2)
        return _PLURALS[name]
    raise AttributeError(name)

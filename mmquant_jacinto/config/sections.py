"""The dicts within ``quantize``: one class for each, which checks its values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional, Union

from ..errors import QuantizeError, nearest
from ..registry import BIAS_CORRECTIONS, ROUNDINGS, look_up

_BIAS_CORRECTION = 'quantize.calibration.bias_correction'
# Rates and factors beyond this overflow in float32 within a few steps.
LARGEST_FACTOR = 1e6
LARGEST_COUNT = 2**31 - 1
# No factor is worth more: 16 bits have about as many.
MOST_DECIBELS = 100


def is_number(value: object) -> bool:
    """Whether a value is a number; True and False, which Python counts, are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_positive(key: str, value: Any) -> None:
    """Raises where a value is no positive number, or too large to compute with."""
    if not is_number(value) or not 0 < value <= LARGEST_FACTOR:
        raise QuantizeError(
            f'quantize.{key}={value!r} is not a positive number; use one above 0, '
            f'up to {LARGEST_FACTOR:g}'
        )


def check_percentile(value: Any) -> None:
    """Raises where a value is not what may be cut off at both ends, in percent."""
    if not is_number(value) or not 0 <= value < 50:
        raise QuantizeError(
            f'quantize.percentile={value!r} is not a share; use a number of percent '
            'from 0 to below 50, such as 0.01'
        )


def check_share(key: str, value: Any) -> None:
    """Raises where a value is no part of a whole."""
    if not is_number(value) or not 0 <= value <= 1:
        raise QuantizeError(
            f'quantize.{key}={value!r} is not a share; use a number from 0 to 1, such '
            'as 0.05'
        )


def check_switch(key: str, value: object, *others: object) -> None:
    """Raises where a value is neither True nor False, nor one of ``others``.

    By identity and type: 1 and 0 equal the switches, and say nothing of which is
    meant where a key also takes words or numbers.
    """
    valid = (True, False, *others)
    if not any(type(value) is type(item) and value == item for item in valid):
        words = [repr(item) for item in valid if item is not None]
        raise QuantizeError(
            f'quantize.{key}={value!r} is not a switch; use '
            f'{", ".join(words[:-1])} or {words[-1]}'
        )


def check_scale_channels(value: object) -> None:
    """Raises where ``scale_channels`` is neither a switch nor a number of decibels.

    1 is no number of decibels here: it may be meant as True.
    """
    if not is_number(value):
        check_switch('scale_channels', value, None)
    elif not 1 < float(value) <= MOST_DECIBELS:  # type: ignore[arg-type]
        raise QuantizeError(
            f'quantize.scale_channels={value!r} is no number of decibels; use True, '
            f'False, or a number above 1, up to {MOST_DECIBELS}'
        )


def check_choice(key: str, value: object, valid: tuple) -> None:
    """Raises where a value is none of the valid ones, naming the nearest."""
    if value not in valid:
        raise QuantizeError(
            f'quantize.{key}={value!r} is unknown; ' + nearest(value, valid)
        )


def check_count(key: str, value: object, least: int) -> None:
    """Raises where a value is no integer, or too small a one."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not least <= value <= LARGEST_COUNT
    ):
        raise QuantizeError(
            f'quantize.{key}={value!r} is not a count; use '
            f'an integer of at least {least}, below 2**31'
        )


@dataclass(frozen=True)
class Calibration:
    """``quantize.calibration``: how ranges and biases are calibrated.

    Args:
        num_images (int): Images to calibrate on, over all processes. Unused
            where ``iterations`` is given. Defaults to 1000.
        iterations (int, optional): Batches to calibrate on, in each process.
        bias_correction (str | bool): ``'iterative'``: with each batch of further
            passes all biases move a step towards the float means, as in the Jacinto
            devkit; ``'sequential'``: one after the other, each to the float mean
            behind those that are corrected; ``'analytic'``: what the rounded weights
            make of the mean input is subtracted, without a further pass (see
            :mod:`~mmquant_jacinto.execute.corrections.analytic_correction`; not for
            deformable convolutions); False: none. Defaults to ``'sequential'``.
        weights (bool, optional): Whether the same passes also correct the weights of
            each channel by the ratio of its output's standard deviations in float and
            quantized. None: where activations have 8 bits or more and a channel a scale
            of its own that is no power of two, but for what leaves the network; with
            ``'sequential'`` biases, and no scales that a training learns.
        epochs (int): Passes of correction over those images, after the pass that
            measures the ranges. 0 switches them off, as ``bias_correction=False``
            does. Defaults to 1.
        lr (float): Step of the iterative correction in its first pass; halved with
            each further pass. Defaults to 0.05.
        dataloader (dict, optional): Where the images come from. Defaults to
            the training set, seen through the pipeline of validation.
    """

    num_images: int = 1000
    iterations: Optional[int] = None
    bias_correction: Union[str, bool] = 'sequential'
    weights: Optional[bool] = None
    epochs: int = 1
    lr: float = 0.05
    dataloader: Optional[Mapping[str, Any]] = None

    def __post_init__(self) -> None:
        check_count('calibration.num_images', self.num_images, 1)
        check_count('calibration.epochs', self.epochs, 0)
        if self.iterations is not None:
            check_count('calibration.iterations', self.iterations, 1)
        if not is_number(self.lr) or not 0 < self.lr <= 1:
            raise QuantizeError(
                f'quantize.calibration.lr={self.lr!r} is not '
                'a step; use a number above 0, up to 1'
            )
        if self.bias_correction is not False:
            look_up(BIAS_CORRECTIONS, _BIAS_CORRECTION, self.bias_correction)
        check_switch('calibration.weights', self.weights, None)
        given = self.dataloader
        is_loader = isinstance(given, Mapping) and 'dataset' in given
        if given is not None and not is_loader:
            raise QuantizeError(
                f'quantize.calibration.dataloader={given!r} is no dataloader; use a '
                'dict as train_dataloader is one, with dataset=dict(...)'
            )
        if self.weights and not self.epochs:
            raise QuantizeError(
                'quantize.calibration.weights=True corrects in passes of its own, and '
                'quantize.calibration.epochs=0 has none; use epochs=1 or more'
            )

    @property
    def passes(self) -> int:
        """int: Quantized passes after the one in float."""
        return self.epochs if self.weights or self.corrects_biases else 0

    @property
    def corrects_biases(self) -> bool:
        """bool: Whether quantized passes correct the biases."""
        way = self.way_to_correct
        return way is not None and way.by_passes

    @property
    def is_robust(self) -> bool:
        """bool: Whether means of layers are robust."""
        way = self.way_to_correct
        return way is not None and way.is_robust

    @property
    def is_analytic(self) -> bool:
        """bool: Whether biases follow from mean inputs and rounding errors."""
        way = self.way_to_correct
        return way is not None and way.by_mean_inputs

    # Asked at each layer of each pass.
    @cached_property
    def way_to_correct(self) -> Any:
        """BiasCorrection, optional: Of ``bias_correction``; None where it is off."""
        if self.bias_correction is False:
            return None
        return look_up(BIAS_CORRECTIONS, _BIAS_CORRECTION, self.bias_correction)()


@dataclass(frozen=True)
class Freeze:
    """``quantize.freeze``: when statistics stop changing during QAT.

    In the unit of the training loop: epochs, or iterations where the loop is
    iteration-based. None takes the schedule of the original, False never
    freezes.

    Args:
        bn (int | bool | None): Start of the epoch that freezes the statistics
            of batch normalization. None: half of the epochs, less one; with a
            teacher (``distill``) the first.
        ranges (int | bool | None): The same for activation ranges. None: half
            of the epochs, plus one; with a teacher the first.
    """

    bn: Union[int, bool, None] = None
    ranges: Union[int, bool, None] = None

    def __post_init__(self) -> None:
        for name in ('bn', 'ranges'):
            value = getattr(self, name)
            if value is not None and value is not False:
                check_count(f'freeze.{name}', value, 0)


@dataclass(frozen=True)
class LearnedScale:
    """``quantize.learned_scale``: scales as parameters of the training.

    Args:
        lr_mult (float): Their learning rate in units of the weights', in optimizers
            that MMEngine's default constructor builds. Defaults to 10.
        num_images (int): Images, over all processes, that the first ranges are
            measured on before the training, unless the checkpoint has some.
            Defaults to 64.
    """

    lr_mult: float = 10.0
    num_images: int = 64

    def __post_init__(self) -> None:
        check_positive('learned_scale.lr_mult', self.lr_mult)
        check_count('learned_scale.num_images', self.num_images, 1)


@dataclass(frozen=True)
class Distill:
    """``quantize.distill``: the float model as the teacher of a training.

    See :mod:`~mmquant_jacinto.methods.self_distillation`.

    Args:
        weight (float): How strongly the teacher pulls at the weights, in units of how
            the labels do. Defaults to 2.5.
        checkpoint (str, optional): The float checkpoint that teaches. Defaults to
            ``load_from``.
    """

    weight: float = 2.5
    checkpoint: Optional[str] = None

    def __post_init__(self) -> None:
        check_positive('distill.weight', self.weight)
        if self.checkpoint is not None and not isinstance(self.checkpoint, str):
            raise QuantizeError(
                f'quantize.distill.checkpoint={self.checkpoint!r} is no path; give '
                'that of a float checkpoint, or leave it away for load_from'
            )


@dataclass(frozen=True)
class Rounding:
    """``quantize.rounding``: weights rounded to what serves a layer's output.

    Args:
        method (str): ``'nearest'``, ``'adaround'`` or ``'coordinate_descent'``, see
            :mod:`~mmquant_jacinto.methods.rounding`. Defaults to ``'nearest'``.
        num_images (int): Images of the calibration set, over all processes, that
            layers are seen on. Defaults to 64.
        iterations (int): Of AdaRound: steps of Adam for each layer. Defaults to 500.
        lr (float): Of AdaRound: learning rate. Defaults to 0.01.
        regularization (float): Of AdaRound: weight of the regularizer that makes each
            rounding a decision. Defaults to 0.01.
        damping (float): Of coordinate descent: penalty for leaving the float weight,
            in units of the inputs' mean square. Defaults to 0.1.
    """

    method: str = 'nearest'
    num_images: int = 64
    iterations: int = 500
    lr: float = 0.01
    regularization: float = 0.01
    damping: float = 0.1

    def __post_init__(self) -> None:
        look_up(ROUNDINGS, 'quantize.rounding.method', self.method)
        check_count('rounding.num_images', self.num_images, 1)
        check_count('rounding.iterations', self.iterations, 1)
        check_positive('rounding.lr', self.lr)
        check_positive('rounding.regularization', self.regularization)
        check_positive('rounding.damping', self.damping)


@dataclass(frozen=True)
class Finetune:
    """``quantize.finetune``: training without labels at the end of a calibration.

    See :mod:`~mmquant_jacinto.methods.finetune`.

    Args:
        iterations (int): Batches that are trained on, in each process; those of the
            calibration, again and again. Defaults to 300.
        lr (float): Learning rate of Adam, for weights in units of a step of their
            grid; falls to zero as a cosine. Defaults to 0.005.
        lr_mult (float): That of the logarithms of scales, in units of ``lr``. Defaults
            to 1.
        augment (bool): Whether images that come again are seen differently: parts of
            them, mirrored, lighter or darker, and mosaics of these. Defaults to True.
    """

    iterations: int = 300
    lr: float = 0.005
    lr_mult: float = 1.0
    augment: bool = True

    def __post_init__(self) -> None:
        check_count('finetune.iterations', self.iterations, 1)
        check_switch('finetune.augment', self.augment)
        check_positive('finetune.lr', self.lr)
        check_positive('finetune.lr_mult', self.lr_mult)

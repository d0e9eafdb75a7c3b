"""The ``quantize`` key of a config: its schema, its short forms, its errors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Optional, Union

from .errors import QuantizeError, nearest
from .fake_quant_config import FakeQuant, check_fake_quants
from .formats import DEPTHWISE, SEARCHES, Preset, check_bits, get_preset

MODES = ('qat', 'ptq')
SHORT_FORMS = {'training': 'qat', 'calibration': 'ptq', 'qat': 'qat', 'ptq': 'ptq'}
OBSERVERS = ('percentile', 'moving_average', 'minmax', *SEARCHES)
WEIGHT_OBSERVERS = ('minmax', 'mse')
ROUNDINGS = ('nearest', 'adaround', 'coordinate_descent')
BIAS_CORRECTIONS = ('iterative', 'sequential', 'analytic')
BIAS_CONSTRAINTS = ('saturate', 'reduce_weight_scale')
SWITCHES = ('learned_scale',)  # sections that True switches on as they are
TENSOR_KINDS = ('weight', 'activation', 'output')

Bits = Union[int, Mapping[str, int]]


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
            :mod:`~mmquant_jacinto.analytic`; not for deformable convolutions); False:
            none. Defaults to
            ``'iterative'``.
        weights (bool): Whether the same passes also correct the weights of each
            channel by the ratio of its output's standard deviations in float and
            quantized. Defaults to False.
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
    bias_correction: Union[str, bool] = 'iterative'
    weights: bool = False
    epochs: int = 1
    lr: float = 0.05
    dataloader: Optional[Mapping[str, Any]] = None

    def __post_init__(self) -> None:
        _check_count('calibration.num_images', self.num_images, 1)
        _check_count('calibration.epochs', self.epochs, 0)
        if self.iterations is not None:
            _check_count('calibration.iterations', self.iterations, 1)
        if not isinstance(self.lr, (int, float)) or not 0 < self.lr <= 1:
            raise QuantizeError(
                f'quantize.calibration.lr={self.lr!r} is not '
                'a step; use a number above 0, up to 1'
            )
        if self.bias_correction is not False:
            _check_choice(
                'calibration.bias_correction', self.bias_correction, BIAS_CORRECTIONS
            )
        if self.weights not in (False, True):
            raise QuantizeError(
                f'quantize.calibration.weights={self.weights!r} is not a switch; use '
                'True or False'
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
        return self.bias_correction in ('iterative', 'sequential')

    @property
    def is_analytic(self) -> bool:
        """bool: Whether biases follow from mean inputs and rounding errors."""
        return self.bias_correction == 'analytic'


@dataclass(frozen=True)
class Freeze:
    """``quantize.freeze``: when statistics stop changing during QAT.

    In the unit of the training loop: epochs, or iterations where the loop is
    iteration-based. None takes the schedule of the original, False never
    freezes.

    Args:
        bn (int | bool | None): Start of the epoch that freezes the statistics
            of batch normalization. None: half of the epochs, less one.
        ranges (int | bool | None): The same for activation ranges. None: half
            of the epochs, plus one.
    """

    bn: Union[int, bool, None] = None
    ranges: Union[int, bool, None] = None

    def __post_init__(self) -> None:
        for name in ('bn', 'ranges'):
            value = getattr(self, name)
            if value is not None and value is not False:
                _check_count(f'freeze.{name}', value, 0)


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
        _check_positive('learned_scale.lr_mult', self.lr_mult)
        _check_count('learned_scale.num_images', self.num_images, 1)


@dataclass(frozen=True)
class Rounding:
    """``quantize.rounding``: weights rounded to what serves a layer's output.

    Args:
        method (str): ``'nearest'``, ``'adaround'`` or ``'coordinate_descent'``, see
            :mod:`~mmquant_jacinto.rounding`. Defaults to ``'nearest'``.
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
        _check_choice('rounding.method', self.method, ROUNDINGS)
        _check_count('rounding.num_images', self.num_images, 1)
        _check_count('rounding.iterations', self.iterations, 1)
        _check_positive('rounding.lr', self.lr)
        _check_positive('rounding.regularization', self.regularization)
        _check_positive('rounding.damping', self.damping)


@dataclass(frozen=True)
class MixedPrecision:
    """``quantize.mixed_precision``: a width for each weight, within a budget.

    See :mod:`~mmquant_jacinto.mixed_precision`. Weights that ``overrides`` give
    a width keep it, and count.

    Args:
        average_bits (float, optional): Budget as the mean width of all
            quantized weights, each element counted once.
        model_size (float, optional): Budget as their total, in megabytes (10^6
            bytes). One of the two has to be given.
        candidates (Sequence[int]): Widths to choose from. Defaults to (4, 8).
        num_images (int): Images that the sensitivity is measured on, over all
            processes; each costs a forward and a backward pass. Defaults to 64.
    """

    average_bits: Optional[float] = None
    model_size: Optional[float] = None
    candidates: Sequence[int] = (4, 8)
    num_images: int = 64

    def __post_init__(self) -> None:
        key = 'quantize.mixed_precision'
        given = [
            name
            for name in ('average_bits', 'model_size')
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise QuantizeError(
                f'{key} has {" and ".join(given) or "no budget"}; give one of '
                'average_bits (such as 5.0) and model_size (megabytes)'
            )
        budget = getattr(self, given[0])
        if (
            isinstance(budget, bool)
            or not isinstance(budget, (int, float))
            or not 0 < budget < math.inf
        ):
            raise QuantizeError(
                f'{key}.{given[0]}={budget!r} is not a budget; use a number above 0'
            )
        widths = self.candidates
        if not isinstance(widths, (list, tuple)) or len(set(widths)) < 2:
            raise QuantizeError(
                f'{key}.candidates={widths!r} leaves no choice; use at least two '
                'widths, such as (4, 8)'
            )
        for width in widths:
            check_bits(f'{key}.candidates', width)
        object.__setattr__(self, 'candidates', tuple(sorted(set(widths))))
        _check_count('mixed_precision.num_images', self.num_images, 1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), 'candidates': list(self.candidates)}


@dataclass(frozen=True)
class QuantizeConfig:
    """Everything that ``quantize = dict(...)`` can say.

    Args:
        mode (str): ``'qat'`` trains with fake quantization, ``'ptq'``
            calibrates a float checkpoint. Defaults to ``'qat'``.
        bits (int | dict): Width of all tensors, or by kind, as in
            ``dict(weight=4, activation=8, output=16)``. Defaults to 8.
        target (str): Preset of numeric formats, a key of
            :data:`~mmquant_jacinto.formats.PRESETS`. Defaults to
            ``'jacinto'``.
        overrides (dict): Patterns of module names (``fnmatch``) to a width, a
            dict of widths by kind, or False for float.
        calibration (dict): See :class:`Calibration`.
        freeze (dict): See :class:`Freeze`.
        observer (str, optional): ``'percentile'``, or ``'moving_average'`` of
            minimum and maximum: averaged over steps; ``'minmax'``: the extremes of
            all steps; or, for calibration, the range that is best for all images
            together: ``'mse'`` of squared error, ``'entropy'`` of divergence.
            Defaults to the preset's.
        percentile (float): Share of a tensor's elements, in percent, that
            the percentile observer cuts off at each end. Defaults to 0.01.
        weight_observer (str): ``'minmax'``: grids hold the largest weight, and follow
            it. ``'mse'``: of least squared error, searched once, before anything is
            quantized. Defaults to ``'minmax'``.
        rounding (str | dict): For ``mode='ptq'``: how weights are rounded, a method
            or all of :class:`Rounding`. Defaults to ``'nearest'``.
        learned_scale (bool | dict, optional): For ``mode='qat'``: whether scales are
            parameters of the training (LSQ), see :class:`LearnedScale`.
        per_channel (str | bool | None): One scale of the weights for each output
            channel, none above 256 times as fine as the coarsest; or
            ``'depthwise'``: where a channel reads one channel alone. None takes the
            preset's.
        weight (dict, optional): For ``mode='qat'``: fake quantizers of MMRazor for
            the weights, see :class:`~mmquant_jacinto.fake_quant_config.FakeQuant`.
        activation (dict, optional): The same for the activations.
        constrain_bias (str | bool | None): ``'saturate'``,
            ``'reduce_weight_scale'`` or False. None takes the preset's.
        constrain_weights (bool, optional): None takes the preset's.
        equalize (bool, optional): Cross-layer equalization: rescales channels
            between layers before anything is quantized, see
            :mod:`~mmquant_jacinto.equalize`. None takes the preset's.
        mixed_precision (MixedPrecision | str, optional): Calibration chooses
            the weights' widths, in place of ``bits``, and writes them to
            ``mixed_precision.json``; the path of such a file takes them from
            there.
    """

    mode: str = 'qat'
    bits: Bits = 8
    target: str = 'jacinto'
    overrides: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    freeze: Freeze = field(default_factory=Freeze)
    observer: Optional[str] = None
    percentile: float = 0.01
    weight_observer: str = 'minmax'
    rounding: Rounding = field(default_factory=Rounding)
    learned_scale: Optional[LearnedScale] = None
    per_channel: Union[str, bool, None] = None
    weight: Optional[FakeQuant] = None
    activation: Optional[FakeQuant] = None
    constrain_bias: Union[str, bool, None] = None
    constrain_weights: Optional[bool] = None
    equalize: Optional[bool] = None
    mixed_precision: Union[MixedPrecision, str, None] = None

    def __post_init__(self) -> None:
        _check_choice('mode', self.mode, MODES)
        get_preset(self.target)
        _widths('quantize.bits', self.bits)
        for pattern, value in self.overrides.items():
            if value is not False:
                _widths(f'quantize.overrides[{pattern!r}]', value)
        if self.observer is not None:
            _check_choice('observer', self.observer, OBSERVERS)
        _check_choice('weight_observer', self.weight_observer, WEIGHT_OBSERVERS)
        for key, given, mode, what in (
            ('learned_scale', self.learned_scale is not None, 'qat', 'trains'),
            ('rounding', self.rounding.method != 'nearest', 'ptq', 'calibrates'),
        ):
            if given and self.mode != mode:
                raise QuantizeError(
                    f'quantize.{key} is for a run that {what}, and quantize.mode='
                    f'{self.mode!r} does not; use mode={mode!r}'
                )
        check_fake_quants(
            self.fake_quants, self.mode, self.learned_scale, self.target, self.preset
        )
        searches = self.observer in SEARCHES and self.learned_scale is None
        if searches and self.mode != 'ptq':
            raise QuantizeError(
                f'quantize.observer={self.observer!r} searches a range for all '
                f'calibration images together, and quantize.mode={self.mode!r} '
                "moves ranges with each step; use observer='percentile', "
                "'moving_average' or 'minmax', or calibrate with mode='ptq'"
            )
        if (
            not isinstance(self.percentile, (int, float))
            or not 0 <= self.percentile < 50
        ):
            raise QuantizeError(
                f'quantize.percentile={self.percentile!r} is not a share; use '
                'a number of percent from 0 to below 50, such as 0.01'
            )
        if self.per_channel not in (None, False, True, DEPTHWISE):
            raise QuantizeError(
                f'quantize.per_channel={self.per_channel!r} is unknown; use True, '
                f'False or {DEPTHWISE!r}'
            )
        if self.constrain_bias not in (None, False):
            _check_choice('constrain_bias', self.constrain_bias, BIAS_CONSTRAINTS)
        if self.searches_bits and self.mode != 'ptq':
            raise QuantizeError(
                'quantize.mixed_precision chooses widths by calibration, and '
                f"quantize.mode={self.mode!r} trains; calibrate with mode='ptq' first, "
                'and train with '
                "mixed_precision='WORK_DIR/mixed_precision.json', which that leaves"
            )
        for key in ('constrain_weights', 'equalize'):
            value = getattr(self, key)
            if value not in (None, False, True):
                raise QuantizeError(
                    f'quantize.{key}={value!r} is not a switch; use True or False'
                )

    @classmethod
    def parse(cls, value: Any) -> Optional['QuantizeConfig']:
        """Reads the value of ``quantize``, in its short or its full form.

        Args:
            value (Any): ``True``, ``'training'``, ``'calibration'`` or a dict
                of the arguments of this class. Falsy: no quantization.

        Returns:
            QuantizeConfig, optional: None where ``value`` is falsy.

        Raises:
            QuantizeError: If a key or a value is unknown; it names the
                nearest valid one.
        """
        if isinstance(value, cls):
            return value
        if not value:
            return None
        if value is True or value == 1:
            return cls()
        if isinstance(value, str):
            if value not in SHORT_FORMS:
                raise QuantizeError(
                    f'quantize={value!r} is unknown; '
                    + nearest(value, ('training', 'calibration'))
                )
            return cls(mode=SHORT_FORMS[value])
        if not isinstance(value, Mapping):
            raise QuantizeError(
                f'quantize={value!r} is neither a dict nor a switch; use '
                "dict(mode='qat', bits=8), True or False"
            )
        return _build(cls, 'quantize', value)

    def bits_of(self, kind: str) -> int:
        """Width asked for tensors of ``kind``, before any override."""
        return self.widths(kind, self.bits)

    def widths(self, kind: str, bits: Bits, default: int = 8) -> int:
        """Width of ``kind`` in a number or in a dict of numbers by kind."""
        if not isinstance(bits, Mapping):
            return bits
        if kind == 'output':
            return bits.get('output', bits.get('activation', default))
        return bits.get(kind, default)

    @property
    def searches_bits(self) -> bool:
        """bool: Whether calibration chooses the widths of weights."""
        return isinstance(self.mixed_precision, MixedPrecision)

    @property
    def fake_quants(self) -> dict[str, FakeQuant]:
        """Dict[str, FakeQuant]: Fake quantizers of MMRazor by kind of tensor."""
        kinds = ('weight', 'activation')
        return {k: getattr(self, k) for k in kinds if getattr(self, k) is not None}

    @property
    def learns_scales(self) -> bool:
        """bool: Whether scales are parameters of the training."""
        return self.learned_scale is not None or bool(self.fake_quants)

    @property
    def preset(self) -> Preset:
        return get_preset(self.target)

    @property
    def observer_name(self) -> str:
        return self.observer or self.preset.observer

    @property
    def channel_scales(self) -> Union[str, bool]:
        """str | bool: ``per_channel``, the preset's where it is not given."""
        if self.per_channel is None:
            return self.preset.weight.per_channel
        return self.per_channel

    @property
    def bias_constraint(self) -> Optional[str]:
        if self.constrain_bias is None:
            return self.preset.constrain_bias
        return self.constrain_bias or None

    @property
    def weight_constraint(self) -> bool:
        if self.constrain_weights is None:
            return self.preset.constrain_weights
        return self.constrain_weights

    @property
    def equalization(self) -> bool:
        return self.preset.equalize if self.equalize is None else self.equalize


def _build(cls: type, key: str, value: Mapping[str, Any]) -> Any:
    nested = dict(
        calibration=Calibration,
        freeze=Freeze,
        learned_scale=LearnedScale,
        mixed_precision=MixedPrecision,
        rounding=Rounding,
        weight=FakeQuant,
        activation=FakeQuant,
    )
    names = [item.name for item in fields(cls)]
    arguments: dict[str, Any] = {}
    for name, item in value.items():
        if name not in names:
            raise QuantizeError(
                f'{key}.{name} is not a known key; ' + nearest(name, names)
            )
        if name in SWITCHES and item in (None, False, True):
            item = nested[name]() if item else None
        elif name == 'rounding' and isinstance(item, str):
            item = Rounding(item)
        elif name == 'mixed_precision' and (not item or isinstance(item, str)):
            item = item or None
        elif name in TENSOR_KINDS and item is None:
            pass
        elif cls is QuantizeConfig and name in nested and not is_dataclass(item):
            if not isinstance(item, Mapping):
                raise QuantizeError(f'{key}.{name}={item!r} is not a dict')
            item = _build(nested[name], f'{key}.{name}', item)
        if name == 'overrides' and not isinstance(item, Mapping):
            raise QuantizeError(
                f'{key}.overrides={item!r} is not a dict; use patterns of '
                "module names, such as {'bbox_head.*': 16}"
            )
        arguments[name] = item
    for item in fields(cls):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in arguments:
            raise QuantizeError(f'{key} has no {item.name}; give {key}.{item.name}')
    return cls(**arguments)


def _widths(key: str, bits: object) -> None:
    if not isinstance(bits, Mapping):
        check_bits(key, bits)
        return
    for kind, value in bits.items():
        if kind not in TENSOR_KINDS:
            raise QuantizeError(
                f'{key}.{kind} is not a kind of tensor; ' + nearest(kind, TENSOR_KINDS)
            )
        check_bits(f'{key}.{kind}', value)


def _check_positive(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise QuantizeError(
            f'quantize.{key}={value!r} is not a positive number; use one above 0'
        )


def _check_choice(key: str, value: object, valid: tuple) -> None:
    if value not in valid:
        raise QuantizeError(
            f'quantize.{key}={value!r} is unknown; ' + nearest(value, valid)
        )


def _check_count(key: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise QuantizeError(
            f'quantize.{key}={value!r} is not a count; use '
            f'an integer of at least {least}'
        )

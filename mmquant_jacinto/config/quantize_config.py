"""The ``quantize`` key of a config: its schema, its short forms, its errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Optional, Union, cast

from ..errors import QuantizeError, nearest
from ..registry import OBSERVERS, WEIGHT_OBSERVERS, look_up
from ..targets.formats import DEPTHWISE, check_bits
from ..targets.target import get_preset
from .build import build
from .defaults import Defaults
from .fake_quant import FakeQuant, check_fake_quants
from .max_drop import MaxDrop, Raised, check_max_drop, parse_max_drop
from .mixed_precision import MixedPrecision
from .sections import (
    Calibration,
    Distill,
    Finetune,
    Freeze,
    LearnedScale,
    Rounding,
    check_choice,
    check_percentile,
    check_positive,
    check_scale_channels,
    check_share,
    check_switch,
)
from .widths import (
    LEAST_AT_EDGES,
    Bits,
    check_pattern,
    check_widths,
    width_of,
    with_wide_sums,
)

MODES = ('qat', 'ptq')
SHORT_FORMS = {'training': 'qat', 'calibration': 'ptq', 'qat': 'qat', 'ptq': 'ptq'}
BIAS_CONSTRAINTS = ('saturate', 'reduce_weight_scale')
SECTIONS = dict(
    calibration=Calibration,
    distill=Distill,
    finetune=Finetune,
    freeze=Freeze,
    learned_scale=LearnedScale,
    max_drop=MaxDrop,
    mixed_precision=MixedPrecision,
    rounding=Rounding,
    weight=FakeQuant,
    activation=FakeQuant,
)


@dataclass(frozen=True)
class QuantizeConfig(Defaults):
    """Everything that ``quantize = dict(...)`` can say.

    Args:
        mode (str): ``'qat'`` trains with fake quantization, ``'ptq'``
            calibrates a float checkpoint. Defaults to ``'qat'``.
        bits (int | dict): Width of all tensors, or by kind, as in
            ``dict(weight=4, activation=8, output=16)``; ``sum``: of what an addition
            reads and gives, wider than ``activation`` where layers are to multiply
            narrower ones than residual branches carry. Defaults to the target's, 8 for
            all of ours; ``sum`` and ``output`` to ``activation``, at least 8.
        edge_bits (int, optional): Least width of the first and the last layers, and
            of what these read, where ``overrides`` says nothing. None: 8.
        light_share (float): Part of all weights, from 0 to 1: layers of few weights
            keep ``edge_bits`` for these, the lightest first, as long as they have no
            more than this together, where ``overrides`` says nothing. Defaults to 0.05.
        target (str): Numeric formats and arithmetic, a name in
            :data:`~mmquant_jacinto.registry.QUANT_TARGETS`. Defaults to
            ``'jacinto'``.
        overrides (dict): Patterns of module names (``fnmatch``) to a width, a
            dict of widths by kind, or False for float.
        calibration (dict): See :class:`Calibration`.
        freeze (dict): See :class:`Freeze`.
        observer (str, optional): ``'percentile'``, or ``'moving_average'`` of
            minimum and maximum: averaged over steps; ``'minmax'``: the extremes of
            all steps; or, for calibration, the range that is best for all images
            together: ``'mse'`` of squared error, ``'entropy'`` of divergence.
            Defaults to the preset's, which may have another for fine grids, and for
            ranges that follow a training.
        percentile (float): Share of a tensor's elements, in percent, that
            the percentile observer cuts off at each end. Defaults to 0.01.
        weight_observer (str): ``'minmax'``: grids hold the largest weight, and follow
            it. ``'mse'``: of least squared error, searched once, before anything is
            quantized. Defaults to ``'minmax'``.
        rounding (str | dict): For ``mode='ptq'``: how weights are rounded, a method
            or all of :class:`Rounding`. Defaults to ``'nearest'``.
        learned_scale (bool | dict, optional): For ``mode='qat'``: whether scales are
            parameters of the training (LSQ), see :class:`LearnedScale`. None: where
            weights or activations have fewer than 8 bits.
        distill (bool | dict, optional): For ``mode='qat'``: whether the float model
            teaches the training, beside the labels, see :class:`Distill`. None: where
            the training starts from a float checkpoint and has no more than 10,000
            images.
        lr_mult (float, optional): For ``mode='qat'``: what the learning rates of the
            config are multiplied by. None: where they are those of the float config
            that it inherits from, and the training starts from a checkpoint, 0.01;
            0.1 where weights or activations have fewer than 8 bits. Else 1.
        finetune (bool | dict, optional): For ``mode='ptq'``: whether weights, biases
            and scales are trained for the float model's outputs once all else is
            calibrated, see :class:`Finetune`. None: where weights or activations have
            fewer than 8 bits and the calibrated outputs are far from float, see
            :mod:`~mmquant_jacinto.methods.finetune`.
        per_channel (str | bool | None): One scale of the weights for each output
            channel, none above 256 times as fine as the coarsest; or
            ``'depthwise'``: where a channel reads one channel alone. None takes the
            preset's.
        weight (dict, optional): For ``mode='qat'``: fake quantizers of MMRazor for
            the weights, see :class:`~mmquant_jacinto.config.fake_quant.FakeQuant`.
        activation (dict, optional): The same for the activations.
        constrain_bias (str | bool | None): ``'saturate'``,
            ``'reduce_weight_scale'`` or False. None takes the preset's.
        constrain_weights (bool, optional): None takes the preset's.
        equalize (bool, optional): Cross-layer equalization: rescales channels
            between layers before anything is quantized, see
            :mod:`~mmquant_jacinto.quantizers.equalize`. None takes the preset's.
        scale_channels (bool | float, optional): Whether calibration divides channels of
            unlike reach by factors of their own, where convolutions take them in,
            see :mod:`~mmquant_jacinto.plan.scaled_channels`. A number: yes, and of how
            many decibels of noise factors are to be worth where they are an operation
            in the file. None: yes, unless weights are rounded by a method or fake
            quantizers are MMRazor's.
        mixed_precision (MixedPrecision | str, optional): Calibration chooses
            the weights' widths, in place of ``bits``, or what is raised above ``bits``
            within a latency, and writes them to ``mixed_precision.json``; the path of
            such a file takes them from there.
        max_drop (float | MaxDrop | str, optional): Points of the validation's metric
            that a calibration may lose against float; layers are raised to keep it,
            and written to ``max_drop.json``; the path of such a file raises them in
            another run.
        surgery (bool): Whether modules of the float model that an engine is slow at
            are replaced, see :mod:`~mmquant_jacinto.wrappers.surgery`. Defaults to
            False.
        report (bool): Whether runs write ``report.html`` beside their logs, see
            :mod:`~mmquant_jacinto.report`. Defaults to True.
    """

    mode: str = 'qat'
    bits: Optional[Bits] = None
    edge_bits: Optional[int] = None
    light_share: float = 0.05
    target: str = 'jacinto'
    overrides: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    freeze: Freeze = field(default_factory=Freeze)
    observer: Optional[str] = None
    percentile: float = 0.01
    weight_observer: Optional[str] = None
    rounding: Rounding = field(default_factory=Rounding)
    learned_scale: Union[LearnedScale, Literal[False], None] = None
    distill: Union[Distill, Literal[False], None] = None
    lr_mult: Optional[float] = None
    finetune: Union[Finetune, Literal[False], None] = None
    per_channel: Union[str, bool, None] = None
    weight: Optional[FakeQuant] = None
    activation: Optional[FakeQuant] = None
    constrain_bias: Union[str, Literal[False], None] = None
    constrain_weights: Optional[bool] = None
    equalize: Optional[bool] = None
    scale_channels: Union[bool, float, None] = None
    mixed_precision: Union[MixedPrecision, Raised, str, None] = None
    max_drop: Union[float, str, MaxDrop, Raised, None] = None
    surgery: bool = False
    report: bool = True

    def __post_init__(self) -> None:
        check_choice('mode', self.mode, MODES)
        get_preset(self.target)
        if self.bits is None:
            object.__setattr__(self, 'bits', self._target_bits())
        check_widths('quantize.bits', self.bits)
        if self.edge_bits is not None:
            check_bits('quantize.edge_bits', self.edge_bits)
        check_share('light_share', self.light_share)
        for pattern, value in self.overrides.items():
            check_pattern(pattern, value)
        if self.observer is not None:
            look_up(OBSERVERS, 'quantize.observer', self.observer)
        look_up(WEIGHT_OBSERVERS, 'quantize.weight_observer', self.weight_observer_name)
        for key, given, mode, what in (
            ('learned_scale', bool(self.learned_scale), 'qat', 'trains'),
            ('distill', bool(self.distill), 'qat', 'trains'),
            ('lr_mult', self.lr_mult is not None, 'qat', 'trains'),
            ('finetune', bool(self.finetune), 'ptq', 'calibrates'),
            ('rounding', self.rounding.method != 'nearest', 'ptq', 'calibrates'),
        ):
            if given and self.mode != mode:
                raise QuantizeError(
                    f'quantize.{key} is for a run that {what}, and quantize.mode='
                    f'{self.mode!r} does not; use mode={mode!r}'
                )
        check_fake_quants(
            *(self.fake_quants, self.mode, bool(self.learned_scale)),
            *(self.target, self.preset),
        )
        if self.lr_mult is not None:
            check_positive('lr_mult', self.lr_mult)
        searches = self.observer_class.searches and self.learning is None
        if searches and self.mode != 'ptq':
            raise QuantizeError(
                f'quantize.observer={self.observer_name!r} searches a range for all '
                f'calibration images together, and quantize.mode={self.mode!r} '
                "moves ranges with each step; use observer='percentile', "
                "'moving_average' or 'minmax', or calibrate with mode='ptq'"
            )
        check_percentile(self.percentile)
        check_switch('per_channel', self.per_channel, None, DEPTHWISE)
        if self.constrain_bias is not None and self.constrain_bias is not False:
            check_choice('constrain_bias', self.constrain_bias, BIAS_CONSTRAINTS)
        if isinstance(self.mixed_precision, MixedPrecision) and self.mode != 'ptq':
            raise QuantizeError(
                'quantize.mixed_precision chooses widths by calibration, and '
                f"quantize.mode={self.mode!r} trains; calibrate with mode='ptq' first, "
                'and train with '
                "mixed_precision='WORK_DIR/mixed_precision.json', which that leaves"
            )
        for key in ('constrain_weights', 'equalize'):
            check_switch(key, getattr(self, key), None)
        check_scale_channels(self.scale_channels)
        object.__setattr__(self, 'max_drop', parse_max_drop(self.max_drop))
        check_max_drop(self.max_drop, self.mode, self.mixed_precision)
        check_switch('report', self.report)
        check_switch('surgery', self.surgery)

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
        config = build(cls, 'quantize', value, SECTIONS)
        given = config.percentile != cls.percentile
        if given and not config.observer_class.takes_percentile:
            raise QuantizeError(
                f'quantize.percentile={config.percentile!r} is of the observer '
                f"'percentile', and quantize.observer is {config.observer_name!r} "
                f"with target={config.target!r}; add observer='percentile'"
            )
        return config

    def with_found_budget(self) -> 'QuantizeConfig':
        """These settings with what a budget's key names a file of.

        Raises:
            QuantizeError: If that cannot be read.
        """
        for section in ('max_drop', 'mixed_precision'):
            path = getattr(self, section)
            raised = Raised.read(path, section) if isinstance(path, str) else None
            if raised is not None:
                return self.with_raised(raised)
        return self

    def with_raised(self, raised: Raised) -> 'QuantizeConfig':
        """These settings with what keeps a budget; a given ``per_channel`` stays.

        Args:
            raised (Raised): What a search has found, or tries.
        """
        remedies = raised.remedies
        per_channel, calibration = self.per_channel, self.calibration
        if per_channel is None:
            per_channel = remedies.get('per_channel')
        if 'bias_correction' in remedies:
            way = remedies['bias_correction']
            calibration = replace(calibration, bias_correction=way)
        changes: dict[str, Any] = {raised.section: raised}
        return replace(
            self, per_channel=per_channel, calibration=calibration, **changes
        )

    def _target_bits(self) -> Bits:
        weight, activation = self.preset.weight.bits, self.preset.activation.bits
        if weight == activation:
            return weight
        return dict(weight=weight, activation=activation)

    def bits_of(self, kind: str, override: Optional[Bits] = None) -> int:
        """Width asked for tensors of ``kind``, where a module may override it."""
        width = width_of(kind, with_wide_sums(cast(Bits, self.bits)))
        return width if override is None else width_of(kind, override, width)

    @property
    def least_at_edges(self) -> int:
        """int: Width that the first and the last layers have at least."""
        return LEAST_AT_EDGES if self.edge_bits is None else self.edge_bits

    @property
    def widens_sums(self) -> bool:
        """bool: Whether additions have a width of their own somewhere."""
        bits = with_wide_sums(cast(Bits, self.bits))
        given = (bits, *self.overrides.values())
        return any(isinstance(bits, Mapping) and 'sum' in bits for bits in given)

    @property
    def searches_bits(self) -> bool:
        """bool: Whether calibration chooses the widths of weights."""
        bits = self.mixed_precision
        return isinstance(bits, MixedPrecision) and bits.latency is None

    @property
    def keeps_latency(self) -> bool:
        """bool: Whether calibration raises what a budget of time allows."""
        bits = self.mixed_precision
        return isinstance(bits, MixedPrecision) and bits.latency is not None

    @property
    def raised(self) -> Optional[Raised]:
        """Raised, optional: What a search has raised, for either budget."""
        given = (self.max_drop, self.mixed_precision)
        return next((item for item in given if isinstance(item, Raised)), None)

    @property
    def keeps_budget(self) -> bool:
        """bool: Whether calibration raises what it takes to keep a budget."""
        return isinstance(self.max_drop, MaxDrop)

    @property
    def raised_layers(self) -> Mapping[str, Any]:
        """Mapping[str, Any]: What a search has raised, by call site."""
        return {} if self.raised is None else self.raised.layers

    @property
    def fake_quants(self) -> dict[str, FakeQuant]:
        """Dict[str, FakeQuant]: Fake quantizers of MMRazor by kind of tensor."""
        kinds = ('weight', 'activation')
        return {k: getattr(self, k) for k in kinds if getattr(self, k) is not None}

    @property
    def learns_scales(self) -> bool:
        """bool: Whether scales, ours or those of others, are trained."""
        return self.learning is not None or bool(self.fake_quants)

    @property
    def may_finetune(self) -> bool:
        """bool: Whether a calibration decides by itself to fine-tune, or not to.

        What was chosen for a score, or rounded by a method, stays as it is.
        """
        is_open = self.calibrates and self.finetune is None
        has_way = self.max_drop is not None or self.rounding.method != 'nearest'
        return is_open and not has_way

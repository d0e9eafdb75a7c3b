"""Defaults: what a key of ``quantize`` stands for where it is not given."""

from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

from ..registry import OBSERVERS, look_up
from ..targets.formats import DEPTHWISE
from ..targets.preset import FEW_BITS, FEW_BITS_OBSERVER, FINE_BITS, Preset
from ..targets.target import get_preset
from .sections import Finetune, LearnedScale, Rounding
from .widths import ENOUGH_BITS, Bits


class Defaults:
    """What follows from the keys of ``quantize``, by mode, target and bits.

    The keys are those of
    :class:`~mmquant_jacinto.config.quantize_config.QuantizeConfig`.
    """

    mode: str
    target: str
    observer: Optional[str]
    weight_observer: Optional[str]
    rounding: Rounding
    learned_scale: Union[LearnedScale, Literal[False], None]
    finetune: Union[Finetune, Literal[False], None]
    per_channel: Union[str, bool, None]
    constrain_bias: Union[str, Literal[False], None]
    constrain_weights: Optional[bool]
    equalize: Optional[bool]
    scale_channels: Union[bool, float, None]

    def bits_of(self, kind: str, override: Optional[Bits] = None) -> int:
        """Width asked for tensors of ``kind``."""
        raise NotImplementedError

    @property
    def fake_quants(self) -> dict[str, Any]:
        """Dict[str, FakeQuant]: Fake quantizers of MMRazor by kind of tensor."""
        raise NotImplementedError

    @property
    def preset(self) -> Preset:
        return get_preset(self.target)

    @property
    def observer_name(self) -> str:
        """str: ``observer``; what activations have by default where it is not given."""
        return self.observer_of(self.bits_of('activation'))

    def observer_of(self, bits: int, stays: Optional[bool] = None) -> str:
        """How ranges of tensors of a width are found, a name in the registry.

        Args:
            bits (int): Of their grids, which may be wider than those of most
                activations.
            stays (bool, optional): Whether ranges are measured once, and follow no
                training. None: of a calibration, and of what learned scales start
                from.
        """
        if self.observer is not None:
            return self.observer
        preset = self.preset
        if stays is None:
            stays = self.calibrates or self.learning is not None
        found = preset.calibration_observer if stays else None
        if found is None:
            return preset.observer
        if self.bits_of('activation') <= FEW_BITS:
            return FEW_BITS_OBSERVER
        return (bits > FINE_BITS and preset.calibration_fine_observer) or found

    def observers_of(
        self, widths: Sequence[int], stays: Optional[bool] = None
    ) -> dict[str, str]:
        """How ranges of tensors of these widths are found.

        Args:
            widths (Sequence[int]): Of all grids.
            stays (bool, optional): See :meth:`observer_of`.

        Returns:
            Dict[str, str]: ``observer``, and where fine grids have another,
            ``fine_observer``.
        """
        if not widths:
            return dict(observer=self.observer_name)
        narrow, fine = (self.observer_of(end(widths), stays) for end in (min, max))
        both = dict(observer=narrow, fine_observer=fine)
        return dict(observer=narrow) if narrow == fine else both

    @property
    def has_few_bits(self) -> bool:
        """bool: Whether weights or activations have fewer bits than come for free."""
        return min(self.bits_of('weight'), self.bits_of('activation')) < ENOUGH_BITS

    @property
    def learning(self) -> Optional[LearnedScale]:
        """LearnedScale, optional: How a training learns scales; None: it does not."""
        if self.learned_scale is None:
            learns = self.mode == 'qat' and self.has_few_bits and not self.fake_quants
            return LearnedScale() if learns else None
        return self.learned_scale or None

    @property
    def weight_observer_name(self) -> str:
        """str: ``weight_observer``, the preset's where it is not given."""
        if self.weight_observer is not None:
            return self.weight_observer
        # What is to be trained must not be cut off.
        searches = self.calibrates and not self.finetune
        return self.preset.calibration_weight_observer if searches else 'minmax'

    @property
    def calibrates(self) -> bool:
        """bool: Whether it is for a calibration."""
        return self.mode == 'ptq'

    @property
    def observer_class(self) -> Any:
        """type: The entry of ``registry.OBSERVERS``."""
        return look_up(OBSERVERS, 'quantize.observer', self.observer_name)

    @property
    def channel_scales(self) -> Union[str, bool]:
        """str | bool: ``per_channel``, the preset's where it is not given."""
        if self.per_channel is not None:
            return self.per_channel
        if self.preset.depthwise_per_channel:
            return DEPTHWISE
        return self.preset.weight.per_channel

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
    def scales_channels(self) -> bool:
        """bool: Whether channels may be divided by factors of their own."""
        unfit = self.rounding.method != 'nearest' or self.fake_quants
        return self.scale_channels is not False and not unfit

    @property
    def factors_worth(self) -> Optional[float]:
        """float, optional: Decibels that ``scale_channels`` names."""
        given = self.scale_channels
        return None if given is None or isinstance(given, bool) else float(given)

    @property
    def equalization(self) -> bool:
        return self.preset.equalize if self.equalize is None else self.equalize

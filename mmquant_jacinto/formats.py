"""Numeric formats as data: what a quantized tensor of each kind looks like.

A preset (``quantize.target``) names one :class:`TensorFormat` for each kind
of tensor. Nothing else in the engine knows a target by name, so a new target
is a new entry in :data:`PRESETS`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

from .errors import QuantizeError, nearest

HALF_UP = 'half_up'  # floor(x + 0.5), the shift of a fixed point unit
HALF_EVEN = 'half_even'  # IEEE 754, ONNX QuantizeLinear
HALF_AWAY = 'half_away'  # C's round()
ROUNDINGS = (HALF_UP, HALF_EVEN, HALF_AWAY)
SEARCHES = ('mse', 'entropy')  # observers that search in histograms
DEPTHWISE = 'depthwise'  # layers whose channels alone have scales of their own
MIN_BITS, MAX_BITS = 2, 16


@dataclass(frozen=True)
class TensorFormat:
    """How one kind of tensor is mapped to integers.

    Args:
        bits (int): Width, 2 to 16.
        symmetric (bool): Whether the zero point is fixed (0 in signed terms).
            An affine format places it so that [min, max] is covered.
        per_channel (bool): One scale for each output channel.
        power_of_two (bool): Scales are powers of two.
        narrow_range (bool): Leave the most negative integer unused, so that
            the grid is symmetric about zero.
        unsigned_if_positive (bool): A symmetric format switches to unsigned
            integers where the range has no negative part.
        rounding (str): One of :data:`ROUNDINGS`.
    """

    bits: int = 8
    symmetric: bool = True
    per_channel: bool = False
    power_of_two: bool = False
    narrow_range: bool = False
    unsigned_if_positive: bool = False
    rounding: str = HALF_EVEN

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise QuantizeError(
                f'rounding={self.rounding!r} is unknown; '
                + nearest(self.rounding, ROUNDINGS)
            )

    def with_bits(self, bits: Optional[int]) -> 'TensorFormat':
        """Returns this format at another width; None keeps the width."""
        return self if bits is None else replace(self, bits=bits)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Preset:
    """The numeric formats of one deployment target.

    Args:
        weight (TensorFormat): Convolution and linear weights, after the batch
            normalization that follows has been folded into them.
        activation (TensorFormat): Every tensor computed inside the network.
        bias_bits (int, optional): Width of the bias in units of input scale
            times weight scale. None: twice the weight's width. In an accumulator
            of 32 bits 31 leave room for the products.
        constrain_bias (str, optional): What happens to a bias that does not
            fit: ``'saturate'`` clamps it, ``'reduce_weight_scale'`` makes the
            weights' grid coarser until it fits.
        constrain_weights (bool): Clamp outliers of the weights once, at the
            first step (see ``weights.constrain_weights``).
        equalize (bool): Rescale channels between layers, once, at the first
            step (see ``equalize``).
        observer (str): How ranges are measured, see ``observers``; which one, by
            ``benchmarks/default_observers.py``.
    """

    weight: TensorFormat
    activation: TensorFormat
    bias_bits: Optional[int] = 31
    constrain_bias: Optional[str] = 'reduce_weight_scale'
    constrain_weights: bool = False
    equalize: bool = False
    observer: str = 'moving_average'


_PER_CHANNEL = TensorFormat(per_channel=True, narrow_range=True)
_AFFINE = TensorFormat(symmetric=False)

PRESETS: Mapping[str, Preset] = {
    # TDA4VM (MMAv1), and what the PyTorch-Jacinto-AI-DevKit trains for.
    'jacinto': Preset(
        weight=TensorFormat(power_of_two=True, rounding=HALF_AWAY),
        activation=TensorFormat(
            power_of_two=True, unsigned_if_positive=True, rounding=HALF_UP
        ),
        bias_bits=None,
        constrain_weights=True,
        observer='percentile',
    ),
    # AM62A, AM68A, AM69A, TDA4AL, TDA4VH (MMAv2).
    'tidl': Preset(weight=_PER_CHANNEL, activation=_AFFINE),
    # S8 weights, U8 activations: the QLinear kernels of ONNX Runtime.
    'onnxruntime': Preset(weight=_PER_CHANNEL, activation=_AFFINE),
    'openvino': Preset(weight=_PER_CHANNEL, activation=_AFFINE),
    # TensorRT's explicit quantization has no zero points.
    'tensorrt': Preset(weight=_PER_CHANNEL, activation=TensorFormat()),
}


def get_preset(target: str) -> Preset:
    """Looks a preset up by the name given in ``quantize.target``.

    Raises:
        QuantizeError: If there is no such target.
    """
    if not isinstance(target, str) or target not in PRESETS:
        raise QuantizeError(
            f'quantize.target={target!r} is unknown; ' + nearest(target, PRESETS)
        )
    return PRESETS[target]


def check_bits(key: str, value: object) -> int:
    """Checks a width given by the user under the config key ``key``.

    Raises:
        QuantizeError: If it is not an integer from 2 to 16.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not MIN_BITS <= value <= MAX_BITS
    ):
        raise QuantizeError(
            f'{key}={value!r} is not a bit width; use an integer from '
            f'{MIN_BITS} to {MAX_BITS} (usually 16, 8 or 4)'
        )
    return value


def integer_bounds(fmt: TensorFormat) -> tuple[int, int]:
    """Smallest and largest integer of a signed symmetric format."""
    high = 2 ** (fmt.bits - 1) - 1
    return (-high if fmt.narrow_range else -high - 1), high

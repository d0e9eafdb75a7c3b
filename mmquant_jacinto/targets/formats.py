"""Numeric formats as data: what the integers of a quantized tensor look like."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

from ..errors import QuantizeError, nearest

HALF_UP = 'half_up'  # floor(x + 0.5), the shift of a fixed point unit
HALF_EVEN = 'half_even'  # IEEE 754, ONNX QuantizeLinear
HALF_AWAY = 'half_away'  # C's round()
ROUNDINGS = (HALF_UP, HALF_EVEN, HALF_AWAY)
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

"""``quantize.mixed_precision``: a budget of bits, or of time."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional

from ..errors import QuantizeError, nearest
from ..targets.formats import check_bits
from .sections import check_count, is_number

KEY = 'quantize.mixed_precision'
FILE = 'mixed_precision.json'
BUDGETS = ('average_bits', 'model_size', 'latency')
KINDS = ('weight', 'activation')


@dataclass(frozen=True)
class MixedPrecision:
    """``quantize.mixed_precision``: widths of tensors, within a budget.

    Of bits: a width for each weight, see
    :mod:`~mmquant_jacinto.methods.mixed_precision`. Of time: calls are raised above
    ``bits``, see :mod:`~mmquant_jacinto.methods.budgets.latency_budget`. What
    ``overrides`` give a width keeps it, and counts.

    Args:
        average_bits (float, optional): Budget as the mean width of all
            quantized weights, each element counted once.
        model_size (float, optional): Budget as their total, in megabytes (10^6
            bytes).
        latency (float, optional): Budget as the time of all calls, from their
            operations by width, in units of that with nothing raised: TI's
            ``mixed_precision_factor``. One of the three has to be given.
        candidates (Sequence[int], optional): Widths to choose from. Defaults to (4, 8);
            with ``latency`` to (8, 16), of which those above ``bits`` are raised to.
        num_images (int): Images that the sensitivity is measured on, over all
            processes; each costs a forward and a backward pass, with ``latency`` some
            three passes for each width. Defaults to 64.
        kinds (Sequence[str], optional): Of ``latency``: what may be raised, of
            ``'weight'`` and ``'activation'``. Defaults to both.
    """

    average_bits: Optional[float] = None
    model_size: Optional[float] = None
    latency: Optional[float] = None
    candidates: Optional[Sequence[int]] = None
    num_images: int = 64
    kinds: Optional[Sequence[str]] = None

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise QuantizeError(
                f'{KEY} has {" and ".join(given) or "no budget"}; give one of '
                'average_bits (such as 5.0), model_size (megabytes) and latency (such '
                'as 1.2)'
            )
        budget = getattr(self, given[0])
        if not is_number(budget) or not 0 < budget < math.inf:
            raise QuantizeError(
                f'{KEY}.{given[0]}={budget!r} is not a budget; use a number above 0'
            )
        self._check_latency()
        self._check_candidates()
        check_count('mixed_precision.num_images', self.num_images, 1)

    def _check_latency(self) -> None:
        if self.latency is None:
            if self.kinds is not None:
                raise QuantizeError(
                    f'{KEY}.kinds={self.kinds!r} is of a budget of time, and others '
                    'are of weights alone; give latency, such as 1.2, or leave it away'
                )
            return
        if self.latency <= 1:
            raise QuantizeError(
                f'{KEY}.latency={self.latency!r} leaves nothing to raise; use a number '
                'above 1, the time with nothing raised, such as 1.2'
            )
        kinds = KINDS if self.kinds is None else self.kinds
        if not isinstance(kinds, (list, tuple)) or not kinds:
            raise QuantizeError(
                f"{KEY}.kinds={kinds!r} is no list of kinds; use ('activation',), "
                "('weight',), or leave it away for both"
            )
        for kind in kinds:
            if kind not in KINDS:
                raise QuantizeError(
                    f'{KEY}.kinds has {kind!r}, which is no kind of tensor; '
                    + nearest(kind, KINDS)
                )
        object.__setattr__(self, 'kinds', tuple(kinds))

    def _check_candidates(self) -> None:
        by_time = self.latency is not None
        widths = self.candidates
        if widths is None:
            widths = (8, 16) if by_time else (4, 8)
        is_list = isinstance(widths, (list, tuple))
        for width in widths if is_list else ():
            check_bits(f'{KEY}.candidates', width)
        # Those of a budget of time are beside ``bits``.
        if not is_list or len(set(widths)) < (1 if by_time else 2):
            least = 'a list of widths, such as (8, 16)'
            raise QuantizeError(
                f'{KEY}.candidates={widths!r} leaves no choice; use '
                + (least if by_time else 'at least two widths, such as (4, 8)')
            )
        object.__setattr__(self, 'candidates', tuple(sorted(set(widths))))

    @property
    def widths(self) -> tuple[int, ...]:
        """Tuple[int, ...]: The candidates."""
        return tuple(self.candidates or ())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; a budget of bits as earlier versions wrote it."""
        found = {**asdict(self), 'candidates': list(self.widths)}
        if self.latency is None:
            del found['latency'], found['kinds']
        else:
            found['kinds'] = list(self.kinds or ())
        return found

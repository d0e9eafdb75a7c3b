"""Ranges of activations: what each step has seen of them, merged over processes.

One tensor for the lower ends of all ranges and one for the upper ones: a
step updates every quantizer with a handful of operations and, over several
processes, one collective, whatever number of layers the model has.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional, cast

import torch
from torch import Tensor, nn

from ...errors import QuantizeError
from ...plan.plan import ActivationSpec
from ...targets.preset import FINE_BITS
from ..activation_grids import GridFormats
from ..learned_scales import LearnedActivationScales
from ..observers import Observer, is_distributed, make_observer, row_extremes
from ..range_search import HistogramObserver
from .extremes import (
    Extremes,
    Observation,
    gather_extremes,
    largest_sample,
    ranked,
)
from .histograms import Histograms

# Of the exponential average: a range keeps following, slowly, for ever.
MIN_AVERAGE_FACTOR = 0.001
# Steps of a training that all observe; of the later ones each fourth does: the
# average hardly moves by then, and an observation is a twentieth of a step.
STEPS_OBSERVED = 128
OBSERVED_EVERY = 4


class Ranges(nn.Module):
    """Ranges of all activations, as observers follow or search them.

    The range is that of the Jacinto devkit's PACT2: per batch the 0.01 % and
    99.99 % percentiles, averaged exponentially with factor max(1/n, 0.001).
    ``'moving_average'`` averages the minima and maxima so, ``'minmax'`` keeps the
    extremes of all steps, and the observers of :mod:`range_search` count a histogram
    over all steps.
    Unlike the original, the statistics of a step are merged when the step's
    forward pass ends, and act from the next step on: one collective instead
    of one per layer, and ranks whose heads are idle cannot deadlock.

    Args:
        specs (Sequence[ActivationSpec]): The quantizers, from the plan.
        observer (str): Name of the observer.
        percentile (float): Of the percentile observer, in percent.
        fine_observer (str, optional): Name of the observer of grids of more than
            ``FINE_BITS``. None: ``observer``.

    Raises:
        QuantizeError: If one of two observers searches ranges.
    """

    low: Tensor
    high: Tensor
    count: Tensor
    steps: Tensor
    rejected: Tensor
    _positive: Tensor
    _headroom: Tensor
    _is_fine: Tensor

    def __init__(
        self,
        specs: Sequence[ActivationSpec],
        observer: str,
        percentile: float,
        fine_observer: Optional[str] = None,
    ) -> None:
        super().__init__()
        self.learned: Optional[LearnedActivationScales] = None
        self.specs = tuple(specs)
        self.index = {spec.name: i for i, spec in enumerate(specs)}
        self._take_observers(observer, percentile, fine_observer)
        fine = [self._is_of_fine(spec) for spec in specs]
        # Floating point all of them: EMA and buffer averaging over
        # processes would break integers.
        for name in ('low', 'high', 'count'):
            self.register_buffer(name, torch.zeros(len(specs)))
        self.register_buffer('steps', torch.zeros(()))
        self._steps = 0  # the same, on the host
        self.register_buffer('rejected', torch.zeros(len(specs)), persistent=False)
        self.register_buffer(
            '_positive',
            torch.tensor([float(spec.positive) for spec in specs]) > 0,
            persistent=False,
        )
        self.register_buffer('_headroom', self._room(), persistent=False)
        self.register_buffer('_is_fine', torch.tensor(fine) > 0, persistent=False)
        self._formats = GridFormats.of([spec.format for spec in specs])
        # Not in checkpoints: a calibration that is killed starts again.
        self._histograms: Optional[Histograms] = None
        self._is_settled = True
        # Of quantizers, by name: what the channels are divided by before, shaped to
        # divide the tensor.
        self.factors: dict[str, Tensor] = {}
        self.observing = True
        self._pending: list[Observation] = []
        # Known on the host, so that no step waits for the device to ask.
        self._ranged: set[int] = set()
        self._extremes: Optional[Extremes] = None

    @staticmethod
    def _is_of_fine(spec: ActivationSpec) -> bool:
        return spec.format.bits > FINE_BITS

    def _take_observers(
        self, observer: str, percentile: float, fine_observer: Optional[str]
    ) -> None:
        self.observer: Observer = make_observer(observer, percentile)
        self.fine_observer = self.observer
        if fine_observer is not None:
            self.fine_observer = make_observer(fine_observer, percentile)
            if self.observer.searches or self.fine_observer.searches:
                raise QuantizeError(
                    f"a target's calibration_fine_observer={fine_observer!r} beside "
                    f'{observer!r}: one that searches ranges is for all tensors; use '
                    "'percentile', 'moving_average' or 'minmax' for both"
                )
        self._observers = [
            self.fine_observer if self._is_of_fine(spec) else self.observer
            for spec in self.specs
        ]

    def _room(self) -> Tensor:
        """How far each range reaches over what is seen: (Q,)."""
        pairs = zip(self._observers, self.specs)
        return torch.tensor([o.headroom(spec.format.bits) for o, spec in pairs])

    @contextmanager
    def observed_by(
        self, observer: str, percentile: float, fine_observer: Optional[str] = None
    ) -> Iterator[None]:
        """Context in which other observers find the ranges, which then are known.

        Args:
            observer (str): Name of the observer.
            percentile (float): Of the percentile observer, in percent.
            fine_observer (str, optional): Of grids of more than ``FINE_BITS``. None:
                ``observer``.
        """
        own = self.observer, self.fine_observer, self._observers
        self._take_observers(observer, percentile, fine_observer)
        self._headroom.copy_(self._room())
        try:
            yield
            self.settle()
        finally:
            self.forget_histograms()
            self.observer, self.fine_observer, self._observers = own
            self._headroom.copy_(self._room())

    def has_range(self, name: str) -> bool:
        """Whether a quantizer has seen anything."""
        return self.index[name] in self._ranged

    @property
    def has_ranges(self) -> bool:
        """bool: Whether any quantizer has seen anything."""
        return bool(self._ranged)

    @property
    def is_due(self) -> bool:
        """bool: Whether the present step of a training observes.

        Ranges that were searched for in histograms stay as calibrated; extremes of
        all steps have to see them all.
        """
        if not self.observing:
            return False
        if self.observer.searches or self.learned is not None:
            # Only what no step has reached so far.
            return len(self._ranged) < len(self.specs) and not self.observer.searches
        return (
            not (self.observer.averages and self.fine_observer.averages)
            or self._steps < STEPS_OBSERVED
            or self._steps % OBSERVED_EVERY == 0
        )

    def end_step(self) -> None:
        """Ends a step of a training; every process must call it equally often."""
        if self.is_due:
            # Learned steps start from a range; they do not follow one.
            self.commit(new_only=self.learned is not None)
        if self.observing:
            self.steps += 1
            self._steps += 1

    def observe(self, name: str, x: Tensor, clip: Optional[tuple] = None) -> None:
        """Measures a tensor; :meth:`commit` merges it into the range.

        Args:
            name (str): The quantizer.
            x (Tensor): What it is about to quantize, before any clipping.
            clip (tuple, optional): Real bounds of the fused activation.
        """
        if x.numel():
            factor, ends = self.factors.get(name), self.specs[self.index[name]].ends
            if factor is not None:
                x = (x if ends is None else x.clamp(*ends)) / factor
            index = self.index[name]
            sample, extremes, weight = self._observers[index].sample(x), None, 1
            if self.observer.searches and len(sample) < x.numel():
                # A search would cut off what no sample has.
                extremes = row_extremes(x)
                weight = round(x.numel() / len(sample))
            if factor is None and ends is not None:
                for part in (sample, extremes):
                    if part is not None:
                        part.clamp_(*ends)
            self._pending.append(Observation(index, sample, clip, extremes, weight))

    @torch.no_grad()
    def commit(self, new_only: bool = False) -> None:
        """Merges what was observed, over processes too, into the ranges.

        Every process of the group must call it equally often.

        Args:
            new_only (bool): Leave ranges that are known as they are.
        """
        pending, self._pending = self._pending, []
        if not self.observing or not (pending or is_distributed()):
            return
        if self.observer.searches:
            self._count(pending)
        else:
            self._follow(pending, new_only)
        # Asked only when something may be seen for the first time: it may wait for
        # the device. Another process may have seen it; all have to know.
        seen = self._ranged.issuperset(item.quantizer for item in pending)
        if not seen or (is_distributed() and len(self._ranged) < len(self.specs)):
            self._ranged = set(self.count.nonzero().flatten().tolist())
        self._forget_grids()

    def _count(self, pending: list[Observation]) -> None:
        """Adds a step to the histograms, in which :meth:`settle` finds the ranges."""
        if self._histograms is None:
            self._histograms = Histograms([spec.positive for spec in self.specs])
        seen, counted = self._histograms.add(pending, self.low.device)
        self.count += counted
        self.rejected += seen & ~counted
        self._is_settled = False

    def settle(self) -> None:
        """Finds the ranges in what the histograms have counted, if it is new."""
        if self._is_settled:
            return
        observer = cast(HistogramObserver, self.observer)
        low, high = observer.search(self._histograms, self._formats)
        ends = self._histograms.ends.clamp(min=0)
        room, is_wide = self._headroom, self._headroom > 1
        low = torch.where(is_wide, -ends[:, 0] * room, low)
        high = torch.where(is_wide, ends[:, 1] * room, high)
        seen = self.count > 0
        self.low.copy_(torch.where(seen, low, self.low))
        self.high.copy_(torch.where(seen, high, self.high))
        self._is_settled = True
        self._forget_grids()

    def forget_histograms(self) -> None:
        """Drops what was counted: the ranges come from a checkpoint."""
        self._histograms = None
        self._is_settled = True

    def _follow(self, pending: list[Observation], new_only: bool) -> None:
        """Moves the ranges towards those of a step."""
        highs, lows, sizes = self._measure(pending)
        rank = self._by_width(*(o.rank(sizes) for o in self._both))
        high, low = ranked(highs, rank), -ranked(lows, rank)
        low = torch.where(self._positive, torch.zeros_like(low), low)
        seen = sizes > 0
        # The extremes themselves, which a percentile would cut off.
        finite = highs[:, 0].isfinite() & (lows[:, 0].isfinite() | self._positive)
        self.rejected += seen & ~finite
        seen &= finite
        if new_only:
            seen &= self.count == 0
        new = self._by_width(
            *(
                self._averaged(high, low, seen)
                if observer.averages
                else self._widened(high, low, seen)
                for observer in self._both
            )
        )
        self.high.copy_(new[0])
        self.low.copy_(new[1])
        self.count += seen

    @property
    def _both(self) -> tuple[Observer, ...]:
        """Tuple[Observer]: Of narrow grids and of fine ones; one, if it is the same."""
        if self.fine_observer is self.observer:
            return (self.observer,)
        return self.observer, self.fine_observer

    def _by_width(self, narrow: Tensor, fine: Optional[Tensor] = None) -> Tensor:
        """What each quantizer takes of what two observers make: (..., Q)."""
        return narrow if fine is None else torch.where(self._is_fine, fine, narrow)

    def _widened(self, high: Tensor, low: Tensor, seen: Tensor) -> Tensor:
        """Ranges that hold those of a step too: upper and lower ends, (2, Q)."""
        high, low = high * self._headroom, low * self._headroom
        known = self.count > 0
        high = torch.where(known, torch.maximum(self.high, high), high)
        low = torch.where(known, torch.minimum(self.low, low), low)
        return torch.stack(
            [torch.where(seen, high, self.high), torch.where(seen, low, self.low)]
        )

    def _averaged(self, high: Tensor, low: Tensor, seen: Tensor) -> Tensor:
        """Ranges moved towards those of a step: upper and lower ends, (2, Q)."""
        count = (self.count + seen).clamp(min=1)
        factor = torch.clamp(1 / count, min=MIN_AVERAGE_FACTOR) * seen
        # A quantizer that was not seen may hold infinities: keep them out.
        high, low = (
            torch.where(seen, end, torch.zeros_like(end)) for end in (high, low)
        )
        return torch.stack(
            [
                self.high + factor * (high - self.high),
                self.low + factor * (low - self.low),
            ]
        )

    def _measure(self, pending: list[Observation]) -> tuple[Tensor, Tensor, Tensor]:
        """Extremes of a step, of all processes: see :class:`Extremes`."""
        if self._extremes is None:
            positive = [spec.positive for spec in self.specs]
            self._extremes = Extremes(positive)
        device = self.low.device
        # Where only the two ends count, samples are no larger.
        cuts = any(observer.fraction for observer in self._both)
        largest = largest_sample(pending, device) if cuts else 1
        depth = max(observer.depth(largest) for observer in self._both)
        if pending:
            extremes = self._extremes(pending, depth, device)
        else:
            nothing = torch.full((len(self.specs), depth), -torch.inf, device=device)
            extremes = nothing, nothing, torch.zeros_like(self.low)
        return gather_extremes(*extremes) if is_distributed() else extremes

    def missing(self) -> list[str]:
        """Names of the quantizers that have no range yet."""
        return [
            spec.name
            for spec, count in zip(self.specs, self.count.tolist())
            if count == 0
        ]

    def take_rejected(self) -> list[str]:
        """Names of the quantizers that met NaN or infinity since last asked.

        Such a batch is left out of the range.
        """
        names = [
            spec.name
            for spec, count in zip(self.specs, self.rejected.tolist())
            if count
        ]
        self.rejected.zero_()
        return names

    def _forget_grids(self) -> None:
        """Takes note that ranges are others than before."""

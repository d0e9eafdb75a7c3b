"""Range statistics of activations: what is looked at, and which of it ends a range.

An observer takes a sample of each tensor; when a step ends, the few largest
and smallest elements of all samples are found together, see
:mod:`~mmquant_jacinto.quantizers.statistics.extremes`.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..registry import OBSERVERS, look_up

# Of each image: enough for its 99.99th percentile, which the running average
# smooths; a full histogram costs 100 times as much.
SAMPLES_PER_ROW = 4096
# Elements taken side by side: single ones cost a cache line each.
CHUNK = 8
# From so many bits on a range has room for what other images have: what it cuts off
# would be nearly all of the noise, and rounding is a bit coarser by it.
WIDE_BITS, WIDE_HEADROOM = 16, 2.0


def is_distributed() -> bool:
    """Whether several processes share the work."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sample_rows(x: Tensor) -> Tensor:
    """Elements of a tensor, some thousands of each row: (n,), float32, a copy.

    Each row of the first (batch) axis is sampled alike, so a batch gives the
    union of what its halves give.
    """
    x = x.detach()
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        # Any order of a row will do, and moving it around takes long.
        x = x.permute(0, 2, 3, 1)
    x = x.contiguous()
    count = x.numel()
    rows = x.shape[0] if x.dim() > 1 else 1
    row = count // rows
    # Odd, so as not to walk down the same columns of a feature map.
    period = row // SAMPLES_PER_ROW // 2 * 2 + 1
    if period > 1:
        chunks = (row - CHUNK) // (CHUNK * period) + 1
        x = x.as_strided((rows, chunks, CHUNK), (row, CHUNK * period, 1))
    # One pass, in half precision too.
    is_single = x.dtype == torch.float32
    x = x.clone(memory_format=torch.contiguous_format) if is_single else x.float()
    return x.view(-1)


def row_extremes(x: Tensor) -> Tensor:
    """Smallest and largest element of each row of the first axis: (2 N,), float32."""
    x = x.detach()
    dims = list(range(1, x.dim())) or [0]
    return torch.cat([x.amin(dims).view(-1), x.amax(dims).view(-1)]).float()


class Observer:
    """Samples tensors, and says which of their extremes ends the range.

    Subclasses are entries of ``registry.OBSERVERS``. What searches a range for all
    steps together is a ``HistogramObserver``, see
    :mod:`~mmquant_jacinto.quantizers.range_search`.

    Args:
        percentile (float): Share of the elements to cut off at each end, in percent.
            0 takes the true minimum and maximum.

    Attributes:
        averages (bool): Whether a range is the average over steps, or holds what each
            step had.
        searches (bool): Whether the range is found in histograms of all steps, when
            they are counted: for calibration alone.
        has_room (bool): Whether a range of 16 bits reaches further than what was seen.
        takes_percentile (bool): Whether ``quantize.percentile`` means it.
    """

    averages = True
    searches = False
    has_room = False
    takes_percentile = False

    def __init__(self, percentile: float = 0.0) -> None:
        self.fraction = percentile / 100

    def sample(self, x: Tensor) -> Tensor:
        """The elements that are looked at: (n,), float32, a copy.

        Without a share to cut off the two ends are enough.
        """
        if not self.fraction:
            return torch.stack(torch.aminmax(x.detach())).float()
        return sample_rows(x)

    def headroom(self, bits: int) -> float:
        """How far a range reaches, over what was seen.

        Args:
            bits (int): Width of the grid.
        """
        return WIDE_HEADROOM if self.has_room and bits >= WIDE_BITS else 1.0

    def rank(self, sizes: Tensor) -> Tensor:
        """Which extreme of samples of these sizes ends the range, from 1."""
        return (sizes * self.fraction).round().long().clamp(min=1)

    def depth(self, size: int) -> int:
        """How many extremes of a sample may be needed."""
        return max(1, min(size, math.ceil(self.fraction * size)))


@OBSERVERS.register_module(name='percentile')
class PercentileObserver(Observer):
    """All but a share of the elements at each end, averaged over steps."""

    takes_percentile = True


@OBSERVERS.register_module(name='moving_average')
class MovingAverageObserver(Observer):
    """Minimum and maximum, averaged over steps."""


@OBSERVERS.register_module(name='minmax')
class MinMaxObserver(Observer):
    """Minimum and maximum of all steps; twice as far with 16 bits.

    Calibrated on 13 photographs, COCO's SSD-MobileNetV2 has 34 dB on 20 others with
    16 bits and no room, 63 dB with it (``onnxruntime``; YOLOX-Nano 28 and 33). With
    12 bits room costs more than it saves.
    """

    averages = False
    has_room = True


def make_observer(name: str, percentile: float) -> Observer:
    """Builds the observer that ``quantize.observer`` names.

    Args:
        name (str): Of an entry of ``registry.OBSERVERS``.
        percentile (float): ``quantize.percentile``.
    """
    observer = look_up(OBSERVERS, 'quantize.observer', name)
    return observer(percentile) if observer.takes_percentile else observer()

"""Range statistics of one tensor, mergeable over calls and processes.

An observer turns a tensor into its few largest and smallest elements. Lists
of extremes can be merged exactly, over several tensors that share a scale
and over processes, so two processes see the range of the doubled batch.
"""

import math

import torch
from torch import Tensor

# Of each image: enough for its 99.99th percentile, which the running average
# smooths; a full histogram costs 100 times as much.
SAMPLES_PER_ROW = 4096


class Observer:
    """Finds the extremes of a tensor.

    Args:
        fraction (float): Share of the elements to cut off at each end. 0
            takes the true minimum and maximum.
        world_size (int): Processes whose extremes will be merged.
    """

    def __init__(self, fraction: float, world_size: int = 1) -> None:
        self.fraction = fraction
        self.world_size = world_size

    def sample(self, x: Tensor) -> Tensor:
        """The elements that are looked at: (n,), float32.

        Each row of the first (batch) axis is sampled alike, so a batch gives
        the union of what its halves give.
        """
        x = x.detach()
        if not self.fraction:
            return x.reshape(-1)
        rows = x.flatten(1) if x.dim() > 1 else x.reshape(1, -1)
        # Odd, so as not to walk down the same columns of a feature map.
        stride = rows.shape[1] // SAMPLES_PER_ROW // 2 * 2 + 1
        return rows[:, ::stride].reshape(-1).float()

    def rank(self, elements: int) -> int:
        """Which extreme, counted from 1, is the end of the range."""
        return max(1, round(self.fraction * elements))

    def __call__(self, x: Tensor, positive: bool) -> tuple[Tensor, Tensor, int]:
        """Measures a tensor.

        Args:
            x (Tensor): Any shape, floating point.
            positive (bool): Whether negative elements are to be ignored.

        Returns:
            Tuple[Tensor, Tensor, int]: The largest elements, the largest of
            the negated elements (descending, (k,)), and the sample's size.
        """
        sample = self.sample(x)
        n = sample.numel()
        if not self.fraction:
            if positive:
                high = sample.amax()[None]
                return high, torch.zeros_like(high), n
            low, high = torch.aminmax(sample)
            return high[None], -low[None], n
        keep = min(n, math.ceil(self.fraction * n * self.world_size) + 1)
        high = sample.topk(keep).values
        if positive:
            return high, torch.zeros_like(high[:1]), n
        return high, -sample.topk(keep, largest=False).values, n


def make_observer(name: str, percentile: float, world_size: int) -> Observer:
    """Builds the observer that ``quantize.observer`` names."""
    fraction = percentile / 100 if name == 'percentile' else 0.0
    return Observer(fraction, world_size)

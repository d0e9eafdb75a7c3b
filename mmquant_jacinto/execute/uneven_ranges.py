"""Uneven ranges: tensors that share a grid which is too coarse for one of them."""

import logging
import re

import torch
from mmengine.logging import print_log
from torch import Tensor

RATIO = 16.0  # of the largest values; the smaller one has 4 bits less


class UnevenRanges:
    """Collects the largest values of what is concatenated, and warns.

    Scores beside boxes in pixels would all become zero.
    """

    def __init__(self) -> None:
        self._largest: dict[str, Tensor] = {}

    def add(self, site: str, tensors: list[Tensor]) -> None:
        """Notes the operands of a concatenation, by call site; without a copy."""
        if not all(x.numel() for x in tensors):
            return
        ends = [x.detach().aminmax() for x in tensors]
        sizes = torch.stack([torch.maximum(-low, high).float() for low, high in ends])
        known = self._largest.get(site)
        if known is not None and len(known) == len(sizes):
            sizes = torch.maximum(known, sizes)
        self._largest[site] = sizes

    def warn(self) -> None:
        """Names those that are too different, once."""
        for site, largest in self._largest.items():
            sizes = [size for size in largest.tolist() if 0 < size < float('inf')]
            if sizes and max(sizes) > RATIO * min(sizes):
                module = re.sub(r'#\d+', '', site.rpartition('/')[0]).split('>')[-1]
                print_log(
                    f'{site} concatenates values up to {max(sizes):.3g} and up to '
                    f'{min(sizes):.3g} on one grid, which is coarse for the latter; '
                    f'quantize.overrides={{{module or "*"!r}: 16}} makes it finer.',
                    'current',
                    logging.WARNING,
                )
        self._largest.clear()

"""Exact sums on a GPU: which libraries may add up integers in float32.

Sums of integers below 2^24 are exact in float32 in any order of adding, as long as
nothing else happens to the terms. cuDNN may round operands to TF32 (11 bits), and
its Winograd and FFT algorithms add up fractions. PyTorch's own convolutions multiply
matrices, so they are exact once cuBLAS keeps from TF32 too.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...targets.grid import Grid

EXACT_IN_FLOAT32 = 2.0**24


class _Settings:
    """The process's settings, as they were before the first of all contexts.

    Threads may be in contexts at a time, and leave them in any order.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.enabled = self.rounds = False

    def enter(self) -> None:
        with self.lock:
            self.depth += 1
            if self.depth > 1:
                return
            self.enabled = torch.backends.cudnn.enabled
            self.rounds = _rounds_operands()
            torch.backends.cudnn.enabled = False
            if self.rounds:
                # By the older of two switches, which moves both: PyTorch refuses to
                # multiply while they differ.
                torch.backends.cuda.matmul.allow_tf32 = False

    def leave(self) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth:
                return
            torch.backends.cudnn.enabled = self.enabled
            if self.rounds:
                torch.backends.cuda.matmul.allow_tf32 = True


_settings = _Settings()


@contextmanager
def exact_sums(device: str) -> Iterator[None]:
    """Context in which convolutions and products of matrices add exactly.

    The settings are the process's own, and come back as they were.

    Args:
        device (str): Type of the device that computes. Only ``'cuda'`` has
            settings.
    """
    if device != 'cuda':
        yield
        return
    _settings.enter()
    try:
        yield
    finally:
        _settings.leave()


def _rounds_operands() -> bool:
    matmul = torch.backends.cuda.matmul
    # From PyTorch 2.9 on; asking the older switch may then be an error.
    if hasattr(matmul, 'fp32_precision'):
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def largest_sum(weight: Tensor, bias: Tensor, axis: int, given: Grid) -> float:
    """Bound of every partial sum of a layer, in whatever order it adds.

    Args:
        weight (Tensor): Integers.
        bias (Tensor): Integers: (C,).
        axis (int): Of the weight's output channels.
        given (Grid): Of the input; Python numbers.
    """
    dims = [d for d in range(weight.dim()) if d != axis]
    above = weight.clamp(min=0).double().sum(dims)
    below = weight.clamp(max=0).double().sum(dims)
    largest = torch.maximum(
        above * given.high + below * given.low,
        -(above * given.low + below * given.high),
    ).amax()
    return float(largest + bias.abs().amax())


def dtype_of_products(x: Tensor, first: Grid, second: Grid) -> torch.dtype:
    """What holds the sums of products of two quantized tensors.

    Args:
        x (Tensor): The first operand, (..., terms).
        first (Grid): Of it; Python numbers.
        second (Grid): Of the other.
    """
    ends = (max(-grid.low, grid.high) for grid in (first, second))
    fits = math.prod(ends) * x.shape[-1] < EXACT_IN_FLOAT32
    return torch.float32 if fits else torch.float64


def exact_pieces(
    weight: Tensor, axis: int, given: Grid, start: int = 0
) -> list[tuple[int, int]]:
    """Input channels of a layer without groups whose sums float32 holds, in pieces.

    Args:
        weight (Tensor): Integers.
        axis (int): Of its output channels, 0 or 1; the input channels are the other.
        given (Grid): Of the input; Python numbers.
        start (int): What the first channel is called. Defaults to 0.

    Returns:
        List[Tuple[int, int]]: First channel of each, and the one behind its last.
    """
    channels = weight.shape[1 - axis]
    no_bias = weight.new_zeros(1)
    fits = largest_sum(weight, no_bias, axis, given) < EXACT_IN_FLOAT32
    if fits or channels == 1:
        return [(start, start + channels)]
    half = channels // 2
    return [
        *exact_pieces(weight.narrow(1 - axis, 0, half), axis, given, start),
        *exact_pieces(
            weight.narrow(1 - axis, half, channels - half), axis, given, start + half
        ),
    ]

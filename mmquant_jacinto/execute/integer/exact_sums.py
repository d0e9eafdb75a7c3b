"""Exact sums on a GPU: which libraries may add up integers in float32.

Sums of integers below 2^24 are exact in float32 in any order of adding, as long as
nothing else happens to the terms. cuDNN may round operands to TF32 (11 bits), and
its Winograd and FFT algorithms add up fractions. PyTorch's own convolutions multiply
matrices, so they are exact once cuBLAS keeps from TF32 too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    enabled, rounds = cudnn.enabled, _rounds_operands()
    cudnn.enabled = False
    if rounds:
        # By the older of two switches, which moves both: PyTorch refuses to
        # multiply while they differ.
        matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.enabled = enabled
        if rounds:
            matmul.allow_tf32 = True


def _rounds_operands() -> bool:
    matmul = torch.backends.cuda.matmul
    # From PyTorch 2.9 on; asking the older switch may then be an error.
    if hasattr(matmul, 'fp32_precision'):
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32

"""Launches of Triton kernels that do not ask Triton each time what it has compiled.

Triton's own way binds, checks and classifies the arguments of each launch, which takes
longer than the small kernels run. What that leads to follows from a few properties of
the arguments; where they are those of an earlier launch, what was compiled for that one
is launched again by its own launcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

# Before it, launchers took other arguments.
_OLDEST = (3, 3)
# What addresses and sizes are multiples of, where Triton compiles another kernel.
_ALIGNMENT = 16
_MOST = 2**31  # sizes below are of 32 bits


def _version() -> tuple[int, ...]:
    numbers = triton.__version__.split('+')[0].split('.')[:2]
    return tuple(int(number) for number in numbers)


class Launcher:
    """A kernel, and what was compiled of it.

    The kernel takes pointers first, then an integer ``count`` and further numbers, then
    what is known at compile time. Its pointers past ``aligned``, and its floats, must
    be parameters that Triton does not specialize.

    Args:
        function: Of ``triton.jit``.
        aligned (int): How many of the pointers come first that it specializes.
    """

    def __init__(self, function: Any, aligned: int) -> None:
        self._function, self._aligned = function, aligned
        self._compiled: dict[tuple, Any] = {}
        # Triton's interpreter compiles nothing.
        is_compiled = isinstance(function, triton.runtime.JITFunction)
        self._is_direct = is_compiled and _version() >= _OLDEST

    def __call__(
        self,
        programs: int,
        tensors: Sequence[Tensor],
        numbers: Sequence[float],
        constants: dict[str, Any],
        **options: Any,
    ) -> None:
        """Launches it on the current device.

        Args:
            programs (int): How many.
            tensors (Sequence[Tensor]): The pointers.
            numbers (Sequence[float]): The first is ``count``, the others floats: Triton
                would compile another kernel for a whole number.
            constants (dict): What is known at compile time, in the kernel's order.
            **options: Of Triton; the same in each launch of the kernel.
        """
        if not self._is_direct:
            self._ask(programs, tensors, numbers, constants, options)
            return
        pointers = [tensor.data_ptr() for tensor in tensors]
        device = torch._C._cuda_getDevice()
        key = (
            device,
            numbers[0] % _ALIGNMENT == 0,
            *[tensor.dtype for tensor in tensors[: self._aligned]],
            *constants.values(),
        )
        odd = 0
        for pointer in pointers[: self._aligned]:
            odd |= pointer % _ALIGNMENT
        compiled = (
            None if odd or not 1 < numbers[0] < _MOST else self._compiled.get(key)
        )
        if compiled is None:
            compiled = self._ask(programs, tensors, numbers, constants, options)
            if not odd and 1 < numbers[0] < _MOST:
                self._compiled[key] = compiled
            return
        launch = programs, 1, 1, torch._C._cuda_getCurrentRawStream(device)
        # No hooks of its profiler.
        what = compiled.function, compiled.packed_metadata, None, None, None
        arguments = *pointers, *numbers, *constants.values()
        try:
            compiled.run(*launch, *what, *arguments)
        except (TypeError, AttributeError):
            # A version that launches otherwise: nothing has run.
            self._is_direct = False
            self._ask(programs, tensors, numbers, constants, options)

    def _ask(
        self,
        programs: int,
        tensors: Sequence[Tensor],
        numbers: Sequence[float],
        constants: dict[str, Any],
        options: dict[str, Any],
    ) -> Any:
        """Launches it by Triton; returns what was compiled."""
        return self._function[(programs,)](*tensors, *numbers, **constants, **options)

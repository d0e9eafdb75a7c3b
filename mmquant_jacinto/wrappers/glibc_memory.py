"""Memory of the host: what a step frees stays with the process.

glibc gives large blocks back to the system when they are freed, so that the
next step takes them anew, page by page: up to 50,000 page faults in each training
step of a ResNet-50 detector on a CPU, a quarter of its time. The quantized model
makes more tensors than the float one and suffers more, in tests too.
"""

import ctypes
import os

# mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, for the rest of the process.

    Left alone where the user has set one of glibc's ``MALLOC_…_`` environment
    variables, and without effect where there is another C library.

    Returns:
        bool: Whether it was done.
    """
    if any(name.startswith('MALLOC_') for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # No trimming of the heap, and no block outside of it.
    return bool(mallopt(M_TRIM_THRESHOLD, -1) and mallopt(M_MMAP_MAX, 0))

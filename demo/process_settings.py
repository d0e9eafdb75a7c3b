"""How the processes that train here use cores and memory."""

import os


def set_process_defaults() -> None:
    """Set what processes started from here on inherit, where the user has not."""
    # so that progress is seen as it happens, through a pipe too
    os.environ['PYTHONUNBUFFERED'] = '1'
    # Threads that wait for each other by spinning take the cores from whatever
    # else runs, the workers that load images first of all.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # glibc gives the memory of a step back and takes it anew, page by page, in the
    # next: a quarter of the time of float training too.
    os.environ.setdefault('MALLOC_TRIM_THRESHOLD_', str(2**62))
    os.environ.setdefault('MALLOC_MMAP_MAX_', '0')

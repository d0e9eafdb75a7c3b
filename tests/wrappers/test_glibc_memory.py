import os
import platform
import subprocess
import sys

import pytest

from mmquant_jacinto.wrappers import glibc_memory as host_memory

# A step's worth of large blocks, taken and given back.
FAULTS = """
import resource, runpy, sys
module = runpy.run_path(sys.argv[2])
done = module['keep_freed_memory']() if sys.argv[1] == 'keep' else None
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(10 << 20) for _ in range(3)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(5):
    faults()
print(done, faults())
"""


def run(argument, **environment):
    result = subprocess.run(
        [sys.executable, '-c', FAULTS, argument, host_memory.__file__],
        capture_output=True,
        text=True,
        env={**clean_environment(), **environment},
    )
    assert result.returncode == 0, result.stderr
    done, faults = result.stdout.split()
    return done, int(faults)


def clean_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}


needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc', reason='another C library'
)


@needs_glibc
def test_freed_memory_is_used_again_without_page_faults():
    assert run('leave')[1] > 1000
    # The heap may lie where it cannot grow: another address the next time.
    runs = [run('keep') for _ in range(4)]
    assert all(done == 'True' for done, _ in runs)
    assert min(faults for _, faults in runs) < 100


@needs_glibc
def test_what_the_user_has_set_is_left_alone():
    assert run('keep', MALLOC_ARENA_MAX='2')[0] == 'False'

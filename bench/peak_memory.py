"""Peak memory of a call, in a process whose allocator gives freed memory back at once."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from bench.resident_memory import forget_peak, peak_resident_bytes, resident_bytes
from mobilevit_kernels.ops import release_idle_maps

MIB = 1 << 20
# Blocks of this size get pages of their own, which the system takes back when they are freed.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}


def peak_bytes(call: Callable[[], object]) -> int:
    """Most resident bytes during a call, above those before; two calls that do not count come first.

    Memory that the kernels keep for the next call is given back before, so that it counts as the call's.
    """
    for _ in range(2):
        call()
    release_idle_maps()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    forget_peak()
    call()
    return peak_resident_bytes() - before


def run_with_allocator(arguments: Sequence[str], run: Callable[[], None]) -> int:
    """Runs in a process with the allocator's settings: this one where it has them, else ``python ARGUMENTS``.

    Returns:
        The exit code.
    """
    if any(os.environ.get(name) != value for name, value in _ALLOCATOR.items()):
        return subprocess.run([sys.executable, *arguments], env={**os.environ, **_ALLOCATOR}).returncode
    run()
    return 0

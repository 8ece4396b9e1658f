"""What glibc does with memory that is freed: keep it, for the rest of the process.

Activations and gradients of one step are as large as those of the next. glibc gives memory of that size back to the kernel
and asks for it again, page by page, which takes about a fifteenth of a training step on a CPU (benchmarks/cpu.py). The
peak stays what it is; between the peaks the process holds on to what it had.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no more: DEFAULT_MMAP_THRESHOLD_MAX
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc, once, at the start of a process; a `MALLOC_...` variable in the environment is left its say.

    Returns:
        whether it was told: not on other systems or C libraries.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))

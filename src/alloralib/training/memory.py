"""Make glibc keep freed memory, instead of returning it to the kernel after every training step.

The activations and gradients of one step are as large as those of the next. By default glibc returns blocks of that size
to the kernel and requests them again, page by page, which costs about 7 % of a training step on a CPU (benchmarks/cpu.py).
Peak memory does not change; between peaks the process keeps what it had.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAX_MMAP_THRESHOLD = 32 * 2**20  # the largest that glibc accepts: DEFAULT_MMAP_THRESHOLD_MAX
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Set glibc's thresholds, once, at the start of a process. A `MALLOC_...` environment variable takes precedence.

    Returns:
        whether they were set; False on other systems and C libraries.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))

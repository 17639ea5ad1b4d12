"""Memory that was used once is kept for the next use, instead of going back to the system.

A fresh page costs a page fault; in a virtual machine that gives unused memory back to its host, several microseconds.  A
program that goes through megabytes a second in short-lived buffers spends more on them than on what it does with the bytes.
"""

from __future__ import annotations

import contextlib
import ctypes

from snapfs.repo.model import MiB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def keep_memory() -> None:
    """Set for the whole process, where the C library is glibc.

    Two arenas only, since buffers are freed in another order and thread than made, and each arena keeps its own.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 16 * MiB)
        mallopt(_M_TRIM_THRESHOLD, 64 * MiB)

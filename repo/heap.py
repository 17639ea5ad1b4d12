"""Fewer page faults, and no more holes than are worth it, where the C library is glibc.

A fresh page costs a page fault; in a virtual machine that gives unused memory back to its host, several microseconds.  A
program that goes through megabytes a second in short-lived buffers spends more on them than on what it does with the bytes, and
one that derives a key from a password a quarter of its start.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator

from snapfs.repo.model import MiB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # malloc.h
_MMAP_MAX = 65536
_TRIM = 64 * MiB
_HUGE = 2 * MiB
_LOOK_EVERY = 8 * MiB
_WORTH = 16 * MiB
_MADV_HUGEPAGE = 14
_kept = False


def keep_memory() -> None:
    """Keep memory that was used once for the next use, instead of giving it back.  Set for the whole process.

    Two arenas only, since buffers are freed in another order and thread than made, and each arena keeps its own.
    """
    global _kept
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 16 * MiB)
        mallopt(_M_TRIM_THRESHOLD, _TRIM)
        _kept = sys.platform.startswith("linux")


class Ceiling:
    """Gives free memory back to the system when more than `limit` bytes of the process are resident.

    By itself glibc gives back the end of a heap only.  What is kept for long, among what comes and goes in all sizes, leaves
    holes before that, which add up to as much again.  No bound: what is in use may be more than `limit`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since = 0
        self._left = 0

    def allocated(self, size: int) -> None:
        """To be told how many bytes came in, by threads that may wait some milliseconds."""
        self._since += size  # without a lock: whoever loses a count looks a little later
        if self._since >= _LOOK_EVERY:
            self._since = 0
            with contextlib.suppress(OSError, AttributeError):
                # What a trim has left is in use: looking for holes in that again and again would only cost time.
                if _private() > max(self._limit, self._left + _WORTH):
                    _give_back()
                    self._left = _private()


def _give_back() -> None:
    ctypes.CDLL(None).malloc_trim(0)


def _private() -> int:
    """Bytes of resident memory that are no file's."""
    with open("/proc/self/statm", "rb") as statm:
        _, resident, of_files, *_ = statm.read().split()
    return (int(resident) - int(of_files)) * mmap.PAGESIZE


@contextlib.contextmanager
def huge_pages(size: int) -> Iterator[None]:
    """Within the block, one allocation of up to `size` bytes by a library comes in pages of 2 MiB, where the kernel has them.

    It is taken from the end of the heap, which was told what it is for; afterwards all of it goes back to the system.  Does
    nothing unless keep_memory() was called, nor in another thread than the main one, whose heap is another.
    """
    if not _kept or threading.current_thread() is not threading.main_thread():
        yield
        return
    libc = ctypes.CDLL(None)
    size += 2 * _HUGE
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, size + _TRIM)
    try:
        if start := libc.malloc(size):
            first = -(-start // _HUGE) * _HUGE
            libc.madvise(first, size - (first - start), _MADV_HUGEPAGE)
            libc.free(start)
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM)
        libc.malloc_trim(0)

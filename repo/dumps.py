"""The memory of a process that holds keys stays out of files."""

from __future__ import annotations

import contextlib
import ctypes

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def no_core_dumps() -> None:
    """No core file of this process, nor of those it forks, and no look at its memory by other programs of this user.

    Not by RLIMIT_CORE: where cores go to a program (systemd-coredump, apport), the kernel does not heed it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)

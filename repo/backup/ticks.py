"""Times that may repeat: a file that is written again within one tick of its file system's clock has the times that it had.

A backup that has read it in between would take it for unchanged from then on.  So what was written only just before it was read
is marked, and read again the next time.  (git calls such files racily clean.)  Since Linux 6.13 some file systems give every
write behind a look a time of its own (Documentation/filesystems/multigrain-ts.rst): there nothing is marked.
"""

from __future__ import annotations

import os
import re

from snapfs.repo.backup._reading import Status

_MOUNTS = "/proc/self/mountinfo"
_FINE = frozenset({"ext4", "xfs", "btrfs", "tmpfs"})
_FINE_SINCE = (6, 13)
_TICK = 20_000_000
"""Nanoseconds: twice the longest tick of a kernel, 10 ms."""
_COARSE = {"vfat": 2_000_000_000, "msdos": 2_000_000_000, "exfat": 2_000_000_000}


class Ticks:
    """How long the ticks of the file systems are that are met."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def may_repeat(self, st: Status | os.stat_result, read_at: int) -> bool:
        """Whether a write behind `read_at` (ns since 1970), when its reading began, may leave no trace in the times of a file."""
        tick = self._known.get(st.st_dev)
        if tick is None:
            tick = self._known[st.st_dev] = tick_of(os.major(st.st_dev), os.minor(st.st_dev))
        return tick > 0 and st.st_ctime_ns > read_at - tick


def tick_of(major: int, minor: int) -> int:
    """Of the file system of this device, in ns; 0 where no time repeats.  What is not known ticks as a kernel does."""
    kind = ""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.split(" ", 3)[2] == f"{major}:{minor}":
                    kind = line.partition(" - ")[2].split(" ", 1)[0]
                    break
    except (OSError, IndexError):
        pass
    if kind in _FINE and _release() >= _FINE_SINCE:
        return 0
    return _COARSE.get(kind, _TICK)


def _release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))

"""The seams to the world outside: clock, randomness, who and where this process is.  Passed in, so that
tests can replace them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import keyed_hash

_counter = itertools.count()
"""One for the process, whatever number of Systems there is in it."""


def _boot_id() -> bytes:
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as f:
            return f.read().strip()
    except OSError:
        return b""


def _uptime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class System:
    """`now`: ns since 1970; `entropy(n)`: n random bytes; `uptime`: ns since this machine started, suspend included."""

    now: Callable[[], int] = time.time_ns
    entropy: Callable[[int], bytes] = os.urandom
    boot_id: bytes = field(default_factory=_boot_id)
    uptime: Callable[[], int] = _uptime

    def salt(self, client: bytes = b"") -> bytes:
        """32 bytes never to be repeated, not even by a stuck random source, a fork or a cloned machine:
        random bytes hashed with what tells processes and moments apart."""
        parts = (
            self.entropy(32),
            client,
            self.boot_id,
            os.getpid(),
            time.time_ns(),
            time.monotonic_ns(),
            next(_counter),
        )
        return keyed_hash(L.SALT_LABEL.ljust(32, b"\0"), repr(parts).encode())

"""Open files of a local folder, kept for the next read: opening one again costs more than reading a frame of it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from snapfs.repo.storage.base import hash_in

_LIMIT = 64


class Descriptors:
    """At most 64, those used last, of names that stand for their content: what has another (the config) may be replaced, and a
    descriptor would go on showing what was there before.  For any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def borrowed(self, name: str, path: str) -> Iterator[int]:
        """A descriptor to read `name` with, opened at `path` if there is none.  Raises OSError.

        It is taken out while it is in use, so that no other thread closes it.
        """
        fd = self._take(name)
        if fd < 0:
            # Nothing in a repository is waited for, a fifo that somebody put there neither.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            if hash_in(name) is None:
                os.close(fd)
            else:
                self._give_back(name, fd)

    def drop(self, names: Iterable[str]) -> None:
        """Close what is open of these: else their room is not free when they are removed."""
        for name in names:
            fd = self._take(name)
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        with self._lock:
            for fd in self._kept.values():
                os.close(fd)
            self._kept.clear()

    def _take(self, name: str) -> int:
        with self._lock:
            return self._kept.pop(name, -1)

    def _give_back(self, name: str, fd: int) -> None:
        with self._lock:
            others = [self._kept.pop(name, -1)]
            self._kept[name] = fd
            if len(self._kept) > _LIMIT:
                others.append(self._kept.popitem(last=False)[1])
        for other in others:
            if other >= 0:
                os.close(other)

"""Examining many volumes at once: in processes of their own where there is much to read, else in threads.

Of a repository of small files half the work of reading is Python's, which threads do one after the other.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from types import TracebackType
from typing import Self

from snapfs.repo.check.scrub import Examiner, Listed, VolumeReport
from snapfs.repo.model import MiB, VolumeKind

_WORTH = 32 * MiB
"""Bytes to read from which on processes are worth their start."""
_MOST = 8
_THREADS = 2
_PR_SET_PDEATHSIG = 1


class Scrubbers:
    """Several who examine volumes.  Processes are forked with the block's beginning, before it starts a thread."""

    def __init__(self, examiner: Examiner, to_read: int) -> None:
        """`to_read`: bytes there are to be read in all."""
        self._examiner = examiner
        count = min(_processors(), _MOST)
        self.apart = to_read >= _WORTH and count > 1 and _may_fork()
        """Whether they are processes, so that this one has its interpreter for itself."""
        self._count = count if self.apart else _THREADS
        self._pool: Executor

    def __enter__(self) -> Self:
        if self.apart:
            try:
                self._pool = ProcessPoolExecutor(
                    self._count,
                    get_context("fork"),
                    initializer=_begin,
                    initargs=(self._examiner, os.getpid()),
                )
                self._pool.submit(int)  # forks them all
                return self
            except (
                OSError,
                ImportError,
                NotImplementedError,
            ):  # a limit of processes, no shared memory, no semaphores
                for child in active_children():
                    child.kill()
                self.apart, self._count = False, _THREADS
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="scrub")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def examine(self, listing: Iterable[Listed]) -> Iterator[VolumeReport]:
        """Reports in the order of the listing; some volumes ahead are being read meanwhile."""
        running: deque[tuple[Listed, Future[VolumeReport] | None]] = deque()
        for listed in listing:
            running.append((listed, self._submit(listed)))
            if len(running) > 2 * self._count:
                yield self._report(*running.popleft())
        while running:
            yield self._report(*running.popleft())

    def _submit(self, listed: Listed) -> Future[VolumeReport] | None:
        try:
            return self._pool.submit(_examine if self.apart else self._examiner.examine, *listed)
        except BrokenProcessPool:
            return None

    def _report(self, listed: Listed, future: Future[VolumeReport] | None) -> VolumeReport:
        """Where a process was killed, for want of memory, say, this one does the rest."""
        if future is not None:
            try:
                return future.result()
            except BrokenProcessPool:
                pass
        return self._examiner.examine(*listed)


_inherited: Examiner
"""In a forked process: whose volumes these are."""


def _begin(examiner: Examiner, parent: int) -> None:
    """In a new process: it ends with the one that forked it, whatever happens to that, and no signal but that ends it."""
    global _inherited
    _inherited = examiner
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _examine(name: bytes, kind: VolumeKind, size: int) -> VolumeReport:
    return _inherited.examine(name, kind, size)


def _may_fork() -> bool:
    """A fork copies one thread, and the locks that others hold for ever: not where there are any, be they not Python's."""
    if not sys.platform.startswith("linux") or threading.active_count() > 1:
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return 1

"""Content on its way before it is asked for: the rest of a large file, or the small files that come next."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from snapfs.fs.answers import without_names
from snapfs.fs.entry import Entry
from snapfs.fs.view import View
from snapfs.repo.model import MiB

log = logging.getLogger(__name__)

_AHEAD = 2 * MiB
_TASKS = 8
_NEAR = 64


class OpenFile:
    """A file that is open, and how far its reader has come."""

    __slots__ = ("ahead", "entry", "in_sequence", "next")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.next = 0
        """Where the last read ended."""
        self.ahead = 0
        """Up to where content was asked for ahead of the reader."""
        self.in_sequence = False
        """Whether it was ever read on from where a read had ended."""


class ReadAhead:
    """Belongs to the event loop.  What it does is never waited for: a read that needs the same meets the same error."""

    def __init__(self, view: View, nursery: trio.Nursery) -> None:
        self._view = view
        self._nursery = nursery
        self._limiter = trio.CapacityLimiter(2)
        self._in_sequence = 0
        """How many open files are read in sequence."""
        self._turns: deque[int] = deque(maxlen=_TASKS)
        """Inodes of small files whose content was loaded ahead: who comes there has the next ones loaded."""

    def was_read(self, file: OpenFile, offset: int, end: int, *, waited: bool) -> None:
        """A reader had this part of a file; `waited`: it was not at hand."""
        node = file.entry.node
        if offset == 0 and end == node.size:
            if waited or (self._turns and self._is_turn(file.entry.inode)):
                self._start(self._view.load_after, file.entry.inode)
        elif offset == file.next and offset:
            self._large(file, offset, end)
        file.next = end

    def closed(self, file: OpenFile) -> None:
        self._in_sequence -= file.in_sequence

    def _large(self, file: OpenFile, offset: int, end: int) -> None:
        node = file.entry.node
        if not file.in_sequence:
            file.in_sequence = True
            self._in_sequence += 1
        # Where so many read in sequence that what they have in hand fills the memory, nobody's next content may push it out.
        if 2 * _AHEAD * self._in_sequence > self._view.blobs.limit:
            self._view.passed(node, offset, end - offset)
            return
        file.ahead = max(file.ahead, end)
        if file.ahead <= end + _AHEAD // 2 and file.ahead < (node.size or 0):
            start, file.ahead = file.ahead, end + _AHEAD
            self._start(self._view.load, node, start, file.ahead - start)

    def _is_turn(self, inode: int) -> bool:
        for turn in self._turns:
            if turn <= inode < turn + _NEAR:
                self._turns.remove(turn)
                return True
        return False

    def _start(self, work: Callable[..., int | None], *args: Any) -> None:
        if self._limiter.borrowed_tokens + self._limiter.statistics().tasks_waiting < _TASKS:
            self._nursery.start_soon(self._run, work, *args)

    async def _run(self, work: Callable[..., int | None], *args: Any) -> None:
        try:
            turn = await trio.to_thread.run_sync(work, *args, limiter=self._limiter)
        except Exception as error:  # noqa: BLE001
            log.debug("read-ahead: %s", without_names(error))
        else:
            if turn is not None:
                self._turns.append(turn)

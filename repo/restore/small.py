"""Small files of new directories: made many at a time by a worker thread, while the walk goes on to what comes next.

A directory gets its own metadata, its times above all, when everything in it is made; until then it is kept open here.
Whatever does not go smoothly is given back and done once more, one by one, where the reason can be told.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace

from snapfs.repo.errors import SnapfsError
from snapfs.repo.model import UNPRIVILEGED_MODE, KiB, MiB, Node
from snapfs.repo.restore._making import make_files
from snapfs.repo.restore.ahead import Ahead
from snapfs.repo.restore.folders import Folder
from snapfs.repo.restore.options import RestoreOptions

_FILE = 256 * KiB
_BATCH_FILES, _BATCH_BYTES = 64, MiB
_IN_FLIGHT_BATCHES, _IN_FLIGHT_BYTES = 32, 8 * MiB

Finish = Callable[[Folder], None]


@dataclass(slots=True)
class _Batch:
    folder: Folder
    """With a descriptor of its own."""
    entries: list[tuple[Node, bytes]] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    size: int = 0
    made: Future[list[int]] | None = None
    finish: Finish | None = None
    """The directory ends here: what is to be done when all of it is made."""


class SmallFiles:
    """`done` is called for each file that was made, `again` for each that is to be made with more care: (folder, node, path)."""

    def __init__(
        self,
        options: RestoreOptions,
        ahead: Ahead,
        pool: Executor,
        done: Callable[[Node, bytes], None],
        again: Callable[[Folder, Node, bytes], None],
    ) -> None:
        self._ahead = ahead
        self._pool = pool
        self._done = done
        self._again = again
        self._enabled = not (options.dry_run or options.ownership_by_name)
        self._bits = UNPRIVILEGED_MODE if options.untrusted else 0o7777
        self._open: _Batch | None = None
        self._of: Folder | None = None
        """Whose files the open batch holds."""
        self._running: deque[_Batch] = deque()
        self._size = 0

    def takes(self, folder: Folder, node: Node) -> bool:
        """Whether this entry is as plain as can be: in a directory that this run made, with one name and no attributes."""
        if not (self._enabled and folder.fresh and node.is_file) or folder.inherits or folder.fd is None:
            return False
        if (
            node.link is not None
            or node.xattrs is not None
            or node.holes is not None
            or node.root is not None
        ):
            return False
        blobs = node.blobs
        return blobs is None or (len(blobs) == 1 and blobs[0][0] is not None and blobs[0][1] <= _FILE)

    def add(self, folder: Folder, node: Node, path: bytes) -> None:
        """Have it made, sooner or later.  Raises RepositoryError if its content cannot be had."""
        if node.blobs is None:
            data = node.data or b""
        else:
            ((blob, length),) = node.blobs
            assert blob is not None
            data = self._ahead.content(blob, length)
        batch = self._open
        if batch is None or self._of is not folder:
            self._submit()
            batch, self._of = _Batch(_kept_open(folder)), folder
            self._open = batch
        batch.entries.append((node, path))
        batch.contents.append(data)
        batch.size += len(data)
        if batch.size >= _BATCH_BYTES or len(batch.entries) >= _BATCH_FILES:
            self._submit()

    def leave(self, folder: Folder, finish: Finish) -> None:
        """A directory ends: `finish` it now, or when its files are made."""
        if self._of is not folder:
            self._submit()
        if self._open is None and not self._running:
            finish(folder)
            return
        if self._open is None:
            self._open = _Batch(_kept_open(folder))
        self._open.finish = finish
        self._submit()

    def flush(self) -> None:
        """Everything is made and finished."""
        self._submit()
        while self._running:
            self._reap()

    def give_up(self) -> None:
        """After whatever ends the restore early: nothing is at work any more, and directories that are complete look it."""
        wait([batch.made for batch in self._running if batch.made is not None])
        for batch in self._running:
            if batch.finish is not None:
                with contextlib.suppress(OSError, SnapfsError):  # the first error is the one to tell
                    batch.finish(batch.folder)
        for batch in (*self._running, *(() if self._open is None else (self._open,))):
            _close(batch.folder)
        self._running.clear()
        self._open = None

    def _submit(self) -> None:
        batch, self._open, self._of = self._open, None, None
        if batch is None:
            return
        if batch.entries:
            assert batch.folder.fd is not None
            files = [
                self._file(node, data) for (node, _), data in zip(batch.entries, batch.contents, strict=True)
            ]
            batch.contents.clear()
            batch.made = self._pool.submit(make_files, batch.folder.fd, files)
        self._running.append(batch)
        self._size += batch.size
        while self._running and (
            len(self._running) > _IN_FLIGHT_BATCHES
            or self._size > _IN_FLIGHT_BYTES
            or self._running[0].made is None
            or self._running[0].made.done()
        ):
            self._reap()

    def _file(self, node: Node, data: bytes) -> tuple[bytes, bytes, int, int, int, int, int]:
        atime = node.mtime if node.atime is None else node.atime
        return node.name, data, node.mode & self._bits, node.uid, node.gid, atime, node.mtime

    def _reap(self) -> None:
        batch = self._running.popleft()
        self._size -= batch.size
        try:
            failed: list[int] = [0] * len(batch.entries)
            if batch.made is not None:
                try:
                    failed = batch.made.result()
                except (OverflowError, MemoryError):
                    # A number that no system call takes: made one by one, and said.
                    failed = [1] * len(batch.entries)
            for (node, path), error in zip(batch.entries, failed, strict=True):
                if error:
                    self._again(batch.folder, node, path)
                else:
                    self._done(node, path)
            if batch.finish is not None:
                batch.finish(batch.folder)
        finally:
            _close(batch.folder)


def _kept_open(folder: Folder) -> Folder:
    assert folder.fd is not None
    return replace(folder, fd=os.dup(folder.fd))


def _close(folder: Folder) -> None:
    if folder.fd is not None:
        with contextlib.suppress(OSError):
            os.close(folder.fd)
        folder.fd = None

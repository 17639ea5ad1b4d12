"""Content into an open file.  What was a hole stays one; a large file is read, opened and written by several threads.

The hole map is believed only where the content agrees: bytes that are not zero are written, whatever it says.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait

from snapfs.repo.content import Span
from snapfs.repo.model import Node
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.restore.ahead import LARGE, Ahead

_IN_FLIGHT = 4
"""Spans of a large file being read or written, each at most 4 MiB."""
_HOLES_A_SPAN = 4096
"""More holes in one blob than that (they would be shorter than a block) are written as zeros."""

Holes = list[tuple[int, int]]
"""(first byte, byte after the last) in the file, ascending."""


class Filling:
    def __init__(self, repository: Repository, ahead: Ahead, pool: Executor, progress: Progress) -> None:
        self._contents = repository.contents
        self._content = ahead.content
        self._pool = pool
        self._progress = progress

    def fill(self, fd: int, node: Node) -> None:
        """Write a file's content into a new, empty file.  Raises OSError, Damaged, StorageError."""
        size = node.size or 0
        if node.blobs is None and node.root is None:
            if node.data:
                write(fd, node.data, 0)
        elif node.blobs is not None and node.holes is None and size <= LARGE and _dense(node):
            at = 0
            for blob, length in node.blobs:
                assert blob is not None
                write(fd, self._content(blob, length), at)
                at += length
        else:
            os.ftruncate(fd, size)
            self._fill_large(fd, node)
            return
        self._progress.advance(1, size)

    def _fill_large(self, fd: int, node: Node) -> None:
        running: deque[tuple[Future[None], int]] = deque()
        try:
            for span, holes in spans_with_holes(self._contents.spans(node), self._contents.holes(node)):
                if span.id is None:
                    for start, end in between(span.offset, span.offset + span.size, holes):
                        _reserve(fd, start, end - start)
                    self._progress.advance(bytes=span.size)
                    continue
                if len(running) == _IN_FLIGHT:
                    self._reap(running)
                running.append((self._pool.submit(self._fill_span, fd, span, holes), span.size))
            while running:
                self._reap(running)
            self._progress.advance(1)
        finally:  # nobody may write to this number once it is closed, and perhaps another file
            wait([future for future, _ in running])

    def _reap(self, running: deque[tuple[Future[None], int]]) -> None:
        future, size = running.popleft()
        future.result()
        self._progress.advance(bytes=size)

    def _fill_span(self, fd: int, span: Span, holes: Holes) -> None:
        assert span.id is not None
        data = self._content(span.id, span.length)
        for start, end in data_between(data, span.offset, holes):
            write(fd, memoryview(data)[start:end], span.offset + start)


def _dense(node: Node) -> bool:
    return all(blob is not None for blob, _ in node.blobs or ())


def write(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of `data` at `offset`."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def spans_with_holes(spans: Iterator[Span], holes: Iterator[tuple[int, int]]) -> Iterator[tuple[Span, Holes]]:
    """Each span with the holes that reach into it; both come ascending."""
    coming = next(holes, None)
    for span in spans:
        end = span.offset + span.size
        found: Holes = []
        while coming is not None and coming[0] < end:
            if len(found) < _HOLES_A_SPAN and coming[0] + coming[1] > span.offset:
                found.append((coming[0], coming[0] + coming[1]))
            if coming[0] + coming[1] > end:
                break
            coming = next(holes, None)
        yield span, found


def between(start: int, end: int, holes: Holes) -> Iterator[tuple[int, int]]:
    """The parts of a range of the file that are in none of the holes."""
    for first, after in holes:
        if first > start:
            yield start, min(first, end)
        start = max(start, after)
    if start < end:
        yield start, end


def data_between(data: bytes, offset: int, holes: Holes) -> Iterator[tuple[int, int]]:
    """(start, end) in `data`, which stands at `offset` in the file, of what is to be written."""
    at = 0
    for first, after in holes:
        start, end = max(first - offset, at), min(after - offset, len(data))
        if start >= end or data.count(0, start, end) != end - start:
            continue
        if start > at:
            yield at, start
        at = end
    if at < len(data):
        yield at, len(data)


def _reserve(fd: int, start: int, length: int) -> None:
    """Give zeros their place on the disk, as they had it, where the file system can: they are read as zeros in any case."""
    try:
        os.posix_fallocate(fd, start, length)
    except OSError as error:
        # The C library reads what it cannot ask the file system to reserve, which this descriptor is not for (EBADF).
        if error.errno not in (errno.EBADF, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise

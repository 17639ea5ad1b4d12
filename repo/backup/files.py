"""Reading the content of one file: cut into blobs, holes left out.

A file below the smallest chunk is one blob.  A hole shorter than the largest blob is handed to the chunker as zeros without
being read, so that a sparse image and a dense copy of it share their blobs; a longer one ends the segment and is an extent
without a blob.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from snapfs.repo.backup import _reading as reading
from snapfs.repo.backup.chunker import Chunker
from snapfs.repo.backup.holes import readable_as_zeros, unallocated
from snapfs.repo.backup.options import Stream
from snapfs.repo.content import ContentWriter, write_holes
from snapfs.repo.format import labels as L
from snapfs.repo.model import BlobId, Extent, Holes, Kind, MiB
from snapfs.repo.packing import Putter

_WINDOW = 8 * MiB
"""What is cut at once, and the largest blob more: what is left over from one window to the next is shorter than that."""
_READ = MiB
"""So much is read at once, so that progress is told and Ctrl-C is heard."""
_BLOCK = 4096
Advance = Callable[[int], None]

Status = os.stat_result | reading.Status


class Content(NamedTuple):
    """The fields of a Node that hold content; `size` bytes were there."""

    size: int
    data: bytes | None = None
    blobs: tuple[Extent, ...] | None = None
    root: bytes | None = None
    holes: Holes | None = None


class Interruption(Exception):
    """Raised by an `Advance` to end the reading of a file in the middle."""


class FileReader:
    """Reads files into blobs, one after another, through one window of memory.

    Raises OSError for the source, RepositoryError for the repository.
    """

    def __init__(self, writer: Putter, chunker: Chunker, page_key: bytes, advance: Advance) -> None:
        self._writer = writer
        self._chunker = chunker
        self._page_key = page_key
        self._advance = advance
        self._window = bytearray()
        """Made when the first large file comes."""

    def is_small(self, st: Status) -> bool:
        """Whether `whole` can store it: shorter than any chunk, and no holes to look for."""
        size = st.st_size
        return size < self._chunker.minimum and (size <= _BLOCK or st.st_blocks * 512 >= size)

    def file(self, fd: int, st: Status) -> Content:
        """The content of an open regular file whose fstat is `st`."""
        size = st.st_size
        if self.is_small(st):
            return self.whole(_read_all(fd, size), st.st_uid)
        sparse = st.st_blocks * 512 < size
        content = ContentWriter(self._put_page, self._page_key)
        end = self._segments(
            fd, size, readable_as_zeros(fd, size) if sparse else iter(()), content, st.st_uid
        )
        extents, root = content.finish()
        kept = write_holes(self._put_page, self._page_key, unallocated(fd, end)) if sparse else None
        return Content(content.size, None, extents, root, kept)

    def stream(self, stream: Stream, owner: int) -> Content:
        """Everything a pipe gives."""
        content = ContentWriter(self._put_page, self._page_key)
        segment = self._segment(content, owner)
        while size := segment.take(lambda room: stream.readinto(room[:_READ]) or 0):
            self._advance(size)
        segment.end()
        extents, root = content.finish()
        return Content(content.size, None, extents, root)

    def whole(self, data: bytes, owner: int) -> Content:
        """All of a small file."""
        size = len(data)
        self._advance(size)
        if size <= L.INLINE_CONTENT:
            return Content(size, data or None)
        return Content(size, None, (Extent(self._writer.put(Kind.CONTENT, data, owner), size),))

    def _segment(self, content: ContentWriter, owner: int) -> _Segment:
        if not self._window:
            self._window = bytearray(self._chunker.maximum + _WINDOW)
        return _Segment(self._window, self._chunker, self._writer, content, owner)

    def _segments(
        self, fd: int, size: int, holes: Iterator[tuple[int, int]], content: ContentWriter, owner: int
    ) -> int:
        """Take in everything up to `size`, or to the end if it is nearer by now; returns that offset.

        What a growing file has gained meanwhile is the next backup's: one that reads after it might never come to the end.
        """
        segment, at = self._segment(content, owner), 0
        for offset, length in holes:
            at += self._data(fd, at, offset, segment)
            if at < offset:  # it has become shorter
                break
            if length < self._chunker.maximum:
                segment.zeros(length)
            else:
                segment.end()
                content.add(None, length)
            self._advance(length)
            at = offset + length
        else:
            at += self._data(fd, at, size, segment)
        segment.end()
        return at

    def _data(self, fd: int, start: int, stop: int, segment: _Segment) -> int:
        at = start
        while at < stop:
            size = segment.take(lambda room: os.preadv(fd, [room[: min(_READ, stop - at)]], at))  # noqa: B023
            if not size:
                break
            at += size
            self._advance(size)
        return at - start

    def _put_page(self, kind: Kind, data: bytes) -> BlobId:
        return self._writer.put(kind, data)


class _Segment:
    """A run of bytes without a long hole, on its way through the chunker.

    The window fills up before it is cut, so that little is looked at twice: only what is left behind the last sure cut.
    """

    def __init__(
        self, window: bytearray, chunker: Chunker, writer: Putter, content: ContentWriter, owner: int
    ) -> None:
        self._view = memoryview(window)
        self._chunker = chunker
        self._writer = writer
        self._content = content
        self._owner = owner
        self._end = 0

    def take(self, read_into: Callable[[memoryview], int]) -> int:
        """Have the free part of the window filled from its beginning; returns how much came."""
        if self._end == len(self._view):
            self._cut(final=False)
        size = read_into(self._view[self._end :])
        self._end += size
        return size

    def zeros(self, length: int) -> None:
        while length:
            size = self.take(lambda room: _zero(room[:length]))  # noqa: B023
            length -= size

    def end(self) -> None:
        if self._end:
            self._cut(final=True)

    def _cut(self, final: bool) -> None:
        at, data = 0, self._view[: self._end]
        for stop in self._chunker.cuts(data, final):
            blob = self._writer.put(Kind.CONTENT, data[at:stop], self._owner)
            self._content.add(blob, stop - at)
            at = stop
        self._end -= at
        self._view[: self._end] = data[at:]


def _zero(room: memoryview) -> int:
    room[:] = bytes(len(room))
    return len(room)


def _read_all(fd: int, size: int) -> bytes:
    """`size` bytes, or up to the end if it is nearer by now."""
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data

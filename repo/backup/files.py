"""Reading the content of one file: cut into blobs, holes left out.

A file below the smallest chunk is one blob.  A hole shorter than the largest blob is handed to the chunker as zeros without
being read, so that a sparse image and a dense copy of it share their blobs; a longer one ends the segment and is an extent
without a blob.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from snapfs.repo.backup.chunker import Chunker
from snapfs.repo.backup.holes import readable_as_zeros, unallocated
from snapfs.repo.content import ContentWriter, write_holes
from snapfs.repo.format import labels as L
from snapfs.repo.model import BlobId, Extent, Holes, Kind, MiB
from snapfs.repo.packing import Putter

_READ = 4 * MiB
Advance = Callable[[int], None]


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
    """Reads files into blobs, one after another, with one buffer.

    Raises OSError for the source, RepositoryError for the repository.
    """

    def __init__(self, writer: Putter, chunker: Chunker, page_key: bytes, advance: Advance) -> None:
        self._writer = writer
        self._chunker = chunker
        self._page_key = page_key
        self._advance = advance

    def file(self, fd: int, st: os.stat_result) -> Content:
        """The content of an open regular file whose fstat is `st`."""
        size = st.st_size
        sparse = st.st_blocks * 512 < size
        if size < self._chunker.minimum and not (sparse and size > 4096):
            data = _read_all(fd, size)
            self._advance(len(data))
            return self._whole(data, st.st_uid)
        content = ContentWriter(self._put_page, self._page_key)
        end = self._segments(
            fd, size, readable_as_zeros(fd, size) if sparse else iter(()), content, st.st_uid
        )
        extents, root = content.finish()
        kept = write_holes(self._put_page, self._page_key, unallocated(fd, end)) if sparse else None
        return Content(content.size, None, extents, root, kept)

    def stream(self, stream: BinaryIO, owner: int) -> Content:
        """Everything a pipe gives."""
        content = ContentWriter(self._put_page, self._page_key)
        segment = _Segment(self, content, owner)
        while data := stream.read(_READ):
            segment.feed(data)
            self._advance(len(data))
        segment.end()
        extents, root = content.finish()
        return Content(content.size, None, extents, root)

    def _whole(self, data: bytes, owner: int) -> Content:
        if len(data) <= L.INLINE_CONTENT:
            return Content(len(data), data or None)
        return Content(len(data), None, (Extent(self._writer.put(Kind.CONTENT, data, owner), len(data)),))

    def _segments(
        self, fd: int, size: int, holes: Iterator[tuple[int, int]], content: ContentWriter, owner: int
    ) -> int:
        """Feed everything up to `size`, or to the end if it is nearer by now; returns that offset.

        What a growing file has gained meanwhile is the next backup's: one that reads after it might never come to the end.
        """
        segment, at = _Segment(self, content, owner), 0
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
            data = os.pread(fd, min(_READ, stop - at), at)
            if not data:
                break
            segment.feed(data)
            at += len(data)
            self._advance(len(data))
        return at - start

    def _put_page(self, kind: Kind, data: bytes) -> BlobId:
        return self._writer.put(kind, data)


class _Segment:
    """A run of bytes without a long hole, on its way through the chunker."""

    def __init__(self, reader: FileReader, content: ContentWriter, owner: int) -> None:
        self._reader = reader
        self._content = content
        self._owner = owner
        self._rest = b""

    def feed(self, data: bytes, final: bool = False) -> None:
        if self._rest:
            data = self._rest + data
        at = 0
        view = memoryview(data)
        for stop in self._reader._chunker.cuts(data, final):
            blob = self._reader._writer.put(Kind.CONTENT, view[at:stop], self._owner)
            self._content.add(blob, stop - at)
            at = stop
        self._rest = data[at:] if at else data

    def zeros(self, length: int) -> None:
        self.feed(bytes(length))

    def end(self) -> None:
        if self._rest:
            self.feed(b"", final=True)
            self._rest = b""


def _read_all(fd: int, size: int) -> bytes:
    """`size` bytes, or up to the end if it is nearer by now."""
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data

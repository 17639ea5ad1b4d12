"""The content of regular files: where each byte lies, and the holes.

A content list is a sequence of extents that covers the file from its first byte to its last: a blob, or a hole of at least
the largest blob, which has no id.  The hole map beside it lists every hole, short ones too; those are zeros in the content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.model import BlobId, Extent, Holes, Kind, Node, Xattr
from snapfs.repo.page_writer import PageWriter, Put, Sums
from snapfs.repo.pages import Leaf, PageReader

_EXTENTS = Leaf(
    lambda raws, where: [records.decode_extent(raw, where) for raw in raws],
    lambda _: [], lambda extents: [0] * len(extents), lambda extents: [length for _, length in extents],
)  # fmt: skip
_HOLES = Leaf(
    lambda raws, where: [records.decode_hole(raw, where) for raw in raws],
    lambda _: [], lambda holes: [0] * len(holes), lambda holes: [length for _, length in holes],
)  # fmt: skip


class Span(NamedTuple):
    """`size` bytes from `skip` in a blob (or of a hole: id None) that stand at `offset` in the file."""

    id: BlobId | None
    skip: int
    size: int
    offset: int
    length: int
    """Of the whole extent."""


class ContentWriter:
    """Collects a file's extents: few stand in the node, many are paged."""

    def __init__(self, put: Put, page_key: bytes) -> None:
        self._put = put
        self._key = page_key
        self._few: list[Extent] = []
        self._pages: PageWriter | None = None
        self.size = 0

    def add(self, blob: BlobId | None, length: int) -> None:
        self.size += length
        if self._pages is None:
            self._few.append(Extent(blob, length))
            if len(self._few) <= L.INLINE_EXTENTS:
                return
            self._pages = PageWriter(self._put, Kind.LIST, self._key)
            for extent in self._few:
                self._page(extent)
        else:
            self._page(Extent(blob, length))

    def _page(self, extent: Extent) -> None:
        assert self._pages is not None
        self._pages.add(records.encode(tuple(extent)), extent.id or b"", Sums(1, extent.length))

    def finish(self) -> tuple[tuple[Extent, ...] | None, bytes | None]:
        """(extents for the node, root page): one of them is None, or both for an empty file."""
        if self._pages is None:
            return tuple(self._few) or None, None
        branch = self._pages.finish()
        assert branch is not None
        return None, branch.id


def write_holes(put: Put, page_key: bytes, holes: Iterator[tuple[int, int]]) -> Holes | None:
    """The hole map of (offset, length) pairs in ascending order; None if there are none."""
    few: list[tuple[int, int]] = []
    pages, total = PageWriter(put, Kind.HOLES, page_key), 0
    for offset, length in holes:
        total += length
        if len(few) <= L.INLINE_HOLES:
            few.append((offset, length))
        pages.add(records.encode((offset, length)), offset.to_bytes(8, "big"), Sums(1, length))
    if len(few) <= L.INLINE_HOLES:
        return Holes(total, tuple(few)) if few else None
    branch = pages.finish()
    assert branch is not None
    return Holes(total, None, branch.id)


class Contents:
    """Reads contents, hole maps and large attribute values.  `node` is always a regular file's Node."""

    def __init__(self, blobs: BlobReader) -> None:
        self._blobs = blobs
        self._extents = PageReader(blobs, Kind.LIST, _EXTENTS)
        self._holes = PageReader(blobs, Kind.HOLES, _HOLES)

    def spans(self, node: Node, offset: int = 0, size: int | None = None) -> Iterator[Span]:
        """The spans that make up `size` bytes from `offset` (to the end by default).  Nothing for inline content."""
        end = node.size or 0 if size is None else min(offset + size, node.size or 0)
        if offset >= end:
            return
        for at, blob, length in self._from(node, offset):
            if at >= end:
                return
            skip = max(offset - at, 0)
            yield Span(
                None if blob is None else BlobId(blob), skip, min(length, end - at) - skip, at + skip, length
            )

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only at the end.  Raises Damaged, BlobMissing, StorageError."""
        if node.blobs is None and node.root is None:
            return (node.data or b"")[offset : offset + size]
        parts = [
            bytes(s.size) if s.id is None else self._slice(s, self._blobs.get(s.id, Kind.CONTENT))
            for s in self.spans(node, offset, size)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_cached(self, node: Node, offset: int, size: int) -> bytes | None:
        """Like read, if everything needed is in memory; else None."""
        if node.blobs is None and node.root is None:
            return (node.data or b"")[offset : offset + size]
        if node.root is not None and not self._extents.cached(node.root):
            return None
        parts = []
        for span in self.spans(node, offset, size):
            data = bytes(span.size) if span.id is None else self._blobs.cached(span.id, Kind.CONTENT)
            if data is None:
                return None
            parts.append(data if span.id is None else self._slice(span, data))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def holes(self, node: Node) -> Iterator[tuple[int, int]]:
        """(offset, length) of each hole, ascending.

        A map that goes back, or beyond the file, ends there: it only says where zeros need no place, and one page named
        again and again would never end."""
        end = 0
        for offset, length in self._mapped(node):
            if offset < end or offset + length > (node.size or 0):
                return
            end = offset + length
            yield offset, length

    def _mapped(self, node: Node) -> Iterator[tuple[int, int]]:
        if node.holes is None:
            return iter(())
        if node.holes.root is None:
            return iter(node.holes.extents or ())
        return (found.entry for found in self._holes.iterate(node.holes.root))

    def xattrs(self, node: Node) -> Iterator[tuple[bytes, bytes]]:
        """(name, value) of each extended attribute."""
        for attribute in node.xattrs or ():
            yield attribute.name, self.value(attribute)

    def value(self, attribute: Xattr) -> bytes:
        if attribute.value is not None:
            return attribute.value
        return b"" if attribute.blob is None else self._blobs.get(BlobId(attribute.blob), Kind.XATTR)

    def blobs(self, node: Node) -> Iterator[tuple[Kind, bytes]]:
        """(kind, id) of every blob of a node but those of directories; pages before what they name, and each page once: a
        list that names one page again and again is as long as a file can be."""
        for attribute in node.xattrs or ():
            if attribute.blob is not None:
                yield Kind.XATTR, attribute.blob
        if node.holes is not None and node.holes.root is not None:
            yield from (
                (Kind.HOLES, p) for p in self._holes.distinct(node.holes.root) if isinstance(p, bytes)
            )
        if not node.is_file:
            return
        if node.root is None:
            yield from ((Kind.CONTENT, blob) for blob, _ in node.blobs or () if blob is not None)
            return
        for page in self._extents.distinct(node.root):
            if isinstance(page, bytes):
                yield Kind.LIST, page
            else:
                yield from ((Kind.CONTENT, blob) for blob, _ in page if blob is not None)
        if self._extents.page(node.root)[1].bytes[-1] != node.size:
            raise _other_length(node)

    def _from(self, node: Node, offset: int) -> Iterator[tuple[int, bytes | None, int]]:
        """(offset, id or None, length) of the extents from the one that covers `offset`."""
        if node.root is None:
            at = 0
            for blob, length in node.blobs or ():
                if at + length > offset:
                    yield at, blob, length
                at += length
            return
        first = self._extents.by_byte(node.root, offset)
        last = offset
        for found in self._extents.iterate(node.root, first.ordinal) if first else ():
            last = found.bytes_before + found.entry[1]
            yield found.bytes_before, found.entry[0], found.entry[1]
        if last != node.size:
            raise _other_length(node)

    @staticmethod
    def _slice(span: Span, data: bytes) -> bytes:
        if len(data) != span.length:
            raise Damaged("a blob of another length than the content list says", "content")
        return data if span.size == span.length else data[span.skip : span.skip + span.size]


def names_blobs(node: Node) -> bool:
    """Whether Contents.blobs() has anything of it: asked for every entry of a walk, most of which are told by this alone."""
    return (
        node.blobs is not None
        or node.xattrs is not None
        or (node.root is not None and not node.is_dir)
        or node.holes is not None
    )


def _other_length(node: Node) -> Damaged:
    return Damaged(f"file {node.name!r} is not as long as it says", "content list")

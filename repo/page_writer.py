"""Writes long sequences as trees of small pages: directories, content lists, hole maps.  repo/pages.py reads them.

A page ends after an entry whose keyed hash meets a mask (the hash is of a name or an id, not of a position), between a least
and a greatest size; the pages' summaries are paged by the same rule until one page is left.  So equal sequences are equal
blobs, and one changed entry rewrites one page a level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

import msgspec

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.format.records import Branch
from snapfs.repo.model import BlobId, Kind

Put = Callable[[Kind, bytes], BlobId]


class Sums(NamedTuple):
    """What an entry adds to its page's summary."""

    entries: int = 1
    bytes: int = 0
    nodes: int = 0
    files: int = 0


class _Level:
    __slots__ = ("bytes", "check", "entries", "files", "first", "nodes", "pages", "raws", "size")

    def __init__(self) -> None:
        self.pages = 0
        self.clear()

    def clone(self) -> _Level:
        other = _Level()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other.raws = list(self.raws)
        return other

    def clear(self) -> None:
        self.raws: list[msgspec.Raw] = []
        self.first: bytes | None = None
        self.size = self.entries = self.bytes = self.nodes = self.files = 0
        self.check = 0
        """CRC-32 of the entries, each taken as it came: they may lie in memory for hours before the page is hashed."""


class PageWriter:
    """Writes one sequence, entry by entry, holding one unfinished page a level."""

    def __init__(self, put: Put, kind: Kind, page_key: bytes) -> None:
        self._put = put
        self._kind = kind
        self._key = page_key
        self._levels = [_Level()]
        self._ended: dict[int, Branch] = {}
        """The last page ended, by level."""

    def add(self, raw: bytes | msgspec.Raw, key: bytes, sums: Sums, name: bytes | None = None) -> None:
        """Append an entry: its encoding, what is hashed for paging, what it adds, and its name if it has one."""
        self._append(0, msgspec.Raw(raw), len(raw), key, sums, name)

    def finish(self) -> Branch | None:
        """The summary of everything; its id is the root page.  None if there was no entry."""
        depth = 0
        while depth < len(self._levels):
            level = self._levels[depth]
            if level.raws:
                self._end(depth)
            if level.pages == 1:
                return self._ended[depth]
            depth += 1
        return None

    def clone(self) -> PageWriter:
        """A copy that can be finished while this one goes on: the beginning of a directory, for a checkpoint."""
        other = PageWriter(self._put, self._kind, self._key)
        other._levels = [level.clone() for level in self._levels]
        other._ended = dict(self._ended)
        return other

    def _append(
        self, depth: int, raw: msgspec.Raw, length: int, key: bytes, sums: Sums, first: bytes | None
    ) -> None:
        level = self._levels[depth]
        if not level.raws:
            level.first = first
        level.raws.append(raw)
        level.check = crc32(raw, level.check)
        level.size += length
        level.entries += sums[0]
        level.bytes += sums[1]
        level.nodes += sums[2]
        level.files += sums[3]
        if level.size >= L.PAGE_MINIMUM and (
            level.size >= L.PAGE_MAXIMUM or not keyed_hash(self._key, bytes((depth,)) + key)[0] & L.PAGE_MASK
        ):
            self._end(depth)

    def _end(self, depth: int) -> None:
        level = self._levels[depth]
        data = records.encode_page(depth, level.raws)
        # Of what flips before it is hashed, no reader could tell that it is not what was meant.
        if crc32(memoryview(data)[-level.size :]) != level.check or data != records.encode_page(
            depth, level.raws
        ):
            raise Damaged("changed before it was stored: is the memory of this machine sound?", "a page")
        page = self._put(self._kind, data)
        branch = Branch(level.first, level.entries, level.bytes, page, level.nodes, level.files)
        level.clear()
        level.pages += 1
        if depth + 1 == len(self._levels):
            self._levels.append(_Level())
        self._ended[depth] = branch
        raw = records.encode(branch)
        self._append(
            depth + 1, msgspec.Raw(raw), len(raw), branch.first if branch.first is not None else page,
            Sums(branch.entries, branch.size, branch.nodes, branch.files), branch.first,
        )  # fmt: skip

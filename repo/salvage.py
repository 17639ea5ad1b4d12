"""What can still be had of a damaged volume: every frame that opens, by whatever way it is found.

The ways, in this order: the directory, as far as it opens; walking from the front; trying where the next header may begin.
What opens is what was written, since every frame is authenticated; ids are computed anew.  A frame whose header is lost is
opened by what the directory says of it.  A header of the volume that is damaged is made again from what must stand there.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from snapfs.repo.errors import Damaged, UnsupportedFormat
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Opener
from snapfs.repo.model import MAX_BLOB, BlobId, Kind, Location, VolumeKind
from snapfs.repo.volumes import Volumes, object_name, open_frame

_TRIES = 6_000_000
"""Places where a header may begin that are tried in one volume, at most: half a minute."""
_AHEAD = 8
"""Frames that may be lost in a row before those that follow are given up."""
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class SavedBlob(NamedTuple):
    id: BlobId
    kind: Kind
    data: bytes
    location: Location
    """`volume`: 0."""


class _Frame(NamedTuple):
    number: int
    offset: int
    sealed: int
    plain: bytes | None
    """None: it does not open."""
    blobs: int
    """How many."""


class Salvage:
    """One damaged volume, read once, whole: at most 1 GiB."""

    def __init__(
        self,
        volumes: Volumes,
        kind: VolumeKind,
        name: bytes,
        *,
        quick: bool = False,
        image: bytes | bytearray | None = None,
    ) -> None:
        """`quick`: only what walking finds, and ordinary readers can open; `image`: what to take for the volume, in place of what
        the disk has.  Raises StorageError if it is absent or the place itself fails."""
        self._volumes = volumes
        self._quick = quick
        self._kind = kind
        self._path = object_name(kind, name)
        data, self.unreadable = volumes.what_can_be_read(self._path) if image is None else (image, False)
        self._data = memoryview(data)
        self._tries = _TRIES
        self.listed: int | None = None
        """Blobs that its directory lists; None if that does not open to the end."""

    def blobs(self) -> Iterator[SavedBlob]:
        """Every blob that can be had, in the order of places."""
        opener = self._opener()
        if opener is None:
            return
        entry = 0
        for number, offset, sealed, plain, count in self._frames(opener):
            if plain is None:
                entry += count
                continue
            try:
                found = framing.split(plain, count, self._path)
            except Damaged:
                continue
            for kind, at, length in found:
                data = plain[at : at + length]
                blob = self._volumes.blob_id(Kind(kind), data)
                yield SavedBlob(
                    blob, Kind(kind), data, Location(0, entry, number, offset, sealed, at, length)
                )
                entry += 1

    def _opener(self) -> Opener | None:
        """None if the key of the volume cannot be told any more."""
        header = bytes(self._data[: L.HEADER_LIMIT])
        as_it_is: Opener | None = None
        with contextlib.suppress(Damaged, UnsupportedFormat):
            as_it_is = self._volumes.make_opener(self._kind, header, self._path)
            if self._quick or self._fits(as_it_is):
                return as_it_is
        for mended in self._volumes.mended_headers(self._kind, header):
            opener = self._volumes.make_opener(self._kind, mended, self._path)
            if self._fits(opener):
                return opener
        return as_it_is

    def _fits(self, opener: Opener) -> bool:
        """Whether the beginning or the end opens: the rest of a header is authenticated with every frame."""
        begin = len(opener.header)
        if opener.opens_header(0, self._data[begin : begin + L.FRAME_HEADER_SIZE]):
            return True
        with contextlib.suppress(Damaged):
            opener.tail(self._data[-L.TAIL_SIZE :])
            return True
        return False

    def _frames(self, opener: Opener) -> Iterator[_Frame]:
        listed = None if self._quick else self._listed(opener)
        if listed is None:
            yield from self._walked(opener)
            return
        self.listed = sum(frame.count for frame, _ in listed)
        for frame, length in listed:
            yield _Frame(
                frame.number, frame.offset, frame.sealed, self._body(opener, frame, length), frame.count
            )

    def _listed(self, opener: Opener) -> list[tuple[layout.FrameEntry, int]] | None:
        """Frames as the directory has them, with the lengths of their plaintexts; None if it does not open whole."""
        size = len(self._data)
        if size < L.HEADER_SIZE + L.TAIL_SIZE:
            return None
        try:
            tail = layout.decode_tail(opener.tail(self._data[-L.TAIL_SIZE :]), size, self._path)
            data = self._data[tail.offset : -L.TAIL_SIZE]
            lengths: dict[int, int] = {}
            for _, _, at in layout.decode_directory(opener, tail, data):
                lengths[at.frame] = at.offset + at.length
            return [(frame, lengths[frame.number]) for frame in layout.directory_frames(opener, tail, data)]
        except Damaged:
            return None

    def _body(self, opener: Opener, frame: layout.FrameEntry, plain: int) -> bytes | None:
        """The plaintext of a frame that the directory lists: its header, which may be lost, is not needed."""
        start = frame.offset + L.FRAME_HEADER_SIZE
        sealed = self._data[start : start + frame.sealed]
        with contextlib.suppress(Damaged):
            body = opener.body(frame.number, sealed)
            codec = L.STORED if len(body) == plain else L.ZSTD
            return framing.decompress(codec, body, plain, self._path)
        return None

    def _walked(self, opener: Opener) -> Iterator[_Frame]:
        """Frames from the front; where a header does not open, the next one is looked for."""
        at, number = len(opener.header), 0
        while at + L.FRAME_HEADER_SIZE + L.TAG_SIZE <= len(self._data):
            try:
                head = opener.frame_header(number, self._data[at : at + L.FRAME_HEADER_SIZE])
            except Damaged:
                found = None if self._quick else self._next(opener, number, at)
                if found is None:
                    return
                if found[0] == number + 1 and (frame := self._headless(opener, number, at, found[1])):
                    yield frame
                number, at = found
                continue
            if head.kind == L.FRAME_BLOBS:
                plain = None
                with contextlib.suppress(Damaged):
                    plain = open_frame(
                        opener, number, self._data[at : at + L.FRAME_HEADER_SIZE + head.sealed]
                    )[1]
                yield _Frame(number, at, head.sealed, plain, head.blobs)
            at += L.FRAME_HEADER_SIZE + head.sealed
            number += 1

    def _next(self, opener: Opener, number: int, at: int) -> tuple[int, int] | None:
        """(number, offset) of the first frame behind a lost header."""
        shortest = L.FRAME_HEADER_SIZE + L.TAG_SIZE
        for ahead in range(1, _AHEAD + 1):
            last = min(len(self._data) - shortest, at + ahead * (shortest + L.FRAME_PLAIN_LIMIT))
            for offset in range(at + ahead * shortest, last + 1):
                self._tries -= 1
                if self._tries < 0:
                    return None
                if opener.opens_header(number + ahead, self._data[offset : offset + L.FRAME_HEADER_SIZE]):
                    return number + ahead, offset
        return None

    def _headless(self, opener: Opener, number: int, at: int, end: int) -> _Frame | None:
        """A frame whose header is lost and whose end is known: codec and number of blobs are told from its bytes."""
        body = self._data[at + L.FRAME_HEADER_SIZE : end]
        with contextlib.suppress(Damaged):
            plain = opener.body(number, body)
            if plain[:4] == _ZSTD_MAGIC:
                plain = framing.decompress_unsized(plain, self._path)
            count = _count(plain)
            if count:
                return _Frame(number, at, len(body), plain, count)
        return None


def _count(plain: bytes) -> int:
    """How many length words a frame begins with: the number with which words and blobs fill it; 0 if there is none."""
    kinds, used = {int(kind) for kind in Kind}, 0
    for count in range(1, min(len(plain) // 4, L.JOINED_BLOBS) + 1):
        (word,) = struct.unpack_from("<I", plain, 4 * (count - 1))
        if word >> 24 not in kinds or (length := word & 0xFFFFFF) > MAX_BLOB:
            return 0
        used += length
        if 4 * count + used == len(plain):
            return count
    return 0

"""What an index keeps, as bytes: the rows of blobs and the records of volumes.  Knows no database.

Key of a blob: the first 16 bytes of its id; value: its location (24 bytes).  Every value ends with an 8-byte keyed tag over key
and value, so that a flipped byte is a miss and never a wrong answer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.model import BlobId, Location, VolumeKind

KEY = 16
_VALUE = struct.Struct("<IQQI")
_FIRST = struct.Struct("<I")
_VOLUME = struct.Struct("<BBQ32s")
_USABLE, _UNVERIFIED = 1, 2
_NUMBER = struct.Struct(">I")
_TAG = 8
ROW = KEY + _VALUE.size + _TAG
"""Bytes of a blob's key and value."""

Entry = tuple[BlobId, Location]


class IndexedVolume(NamedTuple):
    """A volume the index knows.

    Not `usable`: gone, cut short or damaged; read from if need be, never deduplicated against.
    """

    number: int
    name: bytes
    """SHA-256 of the file, 32 bytes."""
    kind: VolumeKind
    size: int
    usable: bool
    verified: bool = True
    """Its writer is trusted, or every id in it was compared.  If not, it is read from, and never deduplicated against."""

    @property
    def reliable(self) -> bool:
        """Whether what is new may rely on it."""
        return self.usable and self.verified


class FoundVolume(NamedTuple):
    """A volume that is to be entered, and its blobs."""

    name: bytes
    kind: VolumeKind
    size: int
    entries: list[Entry]
    usable: bool = True
    whole: bool = True
    """Its directory was read: these are all of its blobs."""
    verified: bool = True


class Rows:
    def __init__(self, tag_key: bytes) -> None:
        self._key = tag_key

    def tag(self, data: bytes, size: int = _TAG) -> bytes:
        return keyed_hash(self._key, data)[:size]

    def blobs(self, number: int, entries: Iterable[Entry]) -> Iterator[bytes]:
        """Key and value, one after the other, of each blob of the volume of this number."""
        secret, pack = self._key, _VALUE.pack
        for blob, (_, entry, frame, frame_offset, sealed, offset, length) in entries:
            row = blob[:KEY] + pack(
                number, entry | frame << 24 | sealed << 40, frame_offset | offset << 32, length
            )
            yield row + keyed_hash(secret, row)[:_TAG]

    def location(self, key: bytes, value: bytes) -> Location | None:
        """None if the tag does not fit: a damaged entry is a missing one."""
        if not self._fits(key, value, _VALUE.size):
            return None
        volume, first, second, length = _VALUE.unpack_from(value)
        return Location(
            volume,
            first & 0xFFFFFF,
            first >> 24 & 0xFFFF,
            second & 0xFFFFFFFF,
            first >> 40,
            second >> 32,
            length,
        )

    def holder(self, key: bytes, value: bytes) -> int | None:
        """The number of the volume alone."""
        return int(_FIRST.unpack_from(value)[0]) if self._fits(key, value, _VALUE.size) else None

    def number_in(self, value: bytes) -> int:
        """The same without a look at the tag."""
        return int(_FIRST.unpack_from(value)[0]) if len(value) >= _FIRST.size else 0

    def number_key(self, number: int) -> bytes:
        """The key of a volume's record."""
        return _NUMBER.pack(number)

    def volume(self, volume: IndexedVolume) -> tuple[bytes, bytes]:
        """(key, value) of its record."""
        key = self.number_key(volume.number)
        flags = _USABLE * volume.usable | _UNVERIFIED * (not volume.verified)
        value = _VOLUME.pack(volume.kind, flags, volume.size, volume.name)
        return key, value + self.tag(key + value)

    def indexed(self, key: bytes, value: bytes) -> IndexedVolume | None:
        """The volume of a record; None if it is damaged."""
        if not self._fits(key, value, _VOLUME.size):
            return None
        kind, flags, size, name = _VOLUME.unpack_from(value)
        number, usable, verified = _NUMBER.unpack(key)[0], bool(flags & _USABLE), not flags & _UNVERIFIED
        return IndexedVolume(number, name, VolumeKind(kind), size, usable, verified)

    def _fits(self, key: bytes, value: bytes, size: int) -> bool:
        return len(value) == size + _TAG and keyed_hash(self._key, key + value[:size])[:_TAG] == value[size:]

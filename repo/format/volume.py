"""The layout of a volume: header, blob frames, padding frames, directory frames, tail.

The tail (the last 32 bytes) says where the directory begins; the directory lists the blob frames and, blob by blob, length
words and ids.  Everything a reader needs to find any blob is in those last bytes, so an index is rebuilt from them alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format.envelope import FrameHeader, Opener
from snapfs.repo.format.records import UNDECODABLE
from snapfs.repo.model import BlobId, Kind, Location

_TAIL = struct.Struct("<IIQ")
_KINDS = frozenset(int(k) for k in Kind)
_MINIMUM_PADDING = L.FRAME_HEADER_SIZE + L.TAG_SIZE


class FrameEntry(msgspec.Struct, array_like=True, frozen=True):
    """One blob frame in the directory: its number, offset of its sealed header, length of its sealed body,
    blobs in it."""

    number: int
    offset: int
    sealed: int
    count: int


class DirectoryPart(msgspec.Struct, array_like=True, frozen=True):
    """The record in a directory frame: frames, and for all their blobs in order the length words (u32 LE)
    and the ids."""

    version: int
    frames: list[FrameEntry]
    words: bytes
    ids: bytes


class Tail(NamedTuple):
    first: int
    """Number of the first directory frame."""
    parts: int
    """How many directory frames follow one another from there."""
    offset: int
    """Offset of the first in the volume."""

    def encode(self) -> bytes:
        return _TAIL.pack(*self)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(DirectoryPart).decode


def encode_directory(frames: list[FrameEntry], words: list[int], ids: list[BlobId]) -> list[bytes]:
    """The plaintexts of the directory frames: at most L.DIRECTORY_PART_BLOBS blobs in each, and at least one part."""
    parts, begin, at, here = [], 0, 0, 0
    for i, frame in enumerate(frames):
        if here and here + frame.count > L.DIRECTORY_PART_BLOBS:
            parts.append(_part(frames[begin:i], words[at : at + here], ids[at : at + here]))
            begin, at, here = i, at + here, 0
        here += frame.count
    parts.append(_part(frames[begin:], words[at:], ids[at:]))
    return parts


def _part(frames: list[FrameEntry], words: list[int], ids: list[BlobId]) -> bytes:
    return _encode(DirectoryPart(1, frames, struct.pack(f"<{len(words)}I", *words), b"".join(ids)))


def directory_size(frames: int, blobs: int) -> int:
    """An upper bound of what the sealed directory and the tail of a volume take, in bytes."""
    parts = 1 + blobs // (L.DIRECTORY_PART_BLOBS - L.JOINED_BLOBS)
    return frames * 24 + blobs * 36 + parts * (32 + _MINIMUM_PADDING) + L.TAIL_SIZE


def decode_tail(plain: bytes, size: int, where: str) -> Tail:
    tail = Tail._make(_TAIL.unpack(plain)) if len(plain) == _TAIL.size else None
    if tail is None or not tail.parts or not L.HEADER_SIZE <= tail.offset < size - L.TAIL_SIZE:
        raise Damaged("bad tail", where)
    return tail


def decode_directory(
    opener: Opener, tail: Tail, data: bytes | memoryview
) -> Iterator[tuple[BlobId, int, Location]]:
    """Each blob of a volume as (id, kind, location); `data`: from `tail.offset` to the tail.  `location.volume`: 0.

    Raises Damaged at the first byte that is not as written.
    """
    entry = 0
    for part in _parts(opener, tail, data):
        blobs = sum(f.count for f in part.frames)
        if len(part.words) != 4 * blobs or len(part.ids) != L.ID_SIZE * blobs:
            raise Damaged("a directory whose lengths do not add up", opener.where)
        if entry + blobs > L.BLOBS_PER_VOLUME or not _KINDS.issuperset(part.words[3::4]):
            raise Damaged("a directory with impossible blobs", opener.where)
        words, ids, i = struct.unpack(f"<{blobs}I", part.words), part.ids, 0
        for frame in part.frames:
            offset = 4 * frame.count
            for _ in range(frame.count):
                length = words[i] & 0xFFFFFF
                location = Location(0, entry, frame.number, frame.offset, frame.sealed, offset, length)
                yield BlobId(ids[32 * i : 32 * i + 32]), words[i] >> 24, location
                offset += length
                if offset > L.FRAME_PLAIN_LIMIT:
                    raise Damaged("a directory with impossible blobs", opener.where)
                i += 1
                entry += 1


def directory_frames(opener: Opener, tail: Tail, data: bytes | memoryview) -> Iterator[FrameEntry]:
    """The blob frames of a volume in order of their place."""
    for part in _parts(opener, tail, data):
        yield from part.frames


def directory_plain(opener: Opener, tail: Tail, data: bytes | memoryview) -> Iterator[bytes]:
    """The plaintexts of the directory frames, as encode_directory gave them."""
    view, at = memoryview(data), 0
    for number in range(tail.first, tail.first + tail.parts):
        head = opener.frame_header(number, view[at : at + L.FRAME_HEADER_SIZE])
        at += L.FRAME_HEADER_SIZE
        if head.kind != L.FRAME_DIRECTORY:
            raise Damaged("a directory that is none", opener.where)
        yield opener.body(number, view[at : at + head.sealed])
        at += head.sealed


def _parts(opener: Opener, tail: Tail, data: bytes | memoryview) -> Iterator[DirectoryPart]:
    for body in directory_plain(opener, tail, data):
        try:
            part = _decode(body)
        except UNDECODABLE as error:
            raise Damaged("a directory that does not decode", opener.where) from error
        if not all(map(_is_possible, part.frames)):
            raise Damaged("a directory with an impossible frame", opener.where)
        yield part


def _is_possible(frame: FrameEntry) -> bool:
    """Whether an index can hold it: the directory may be somebody else's who has the key."""
    return (
        0 <= frame.number < L.FRAMES_PER_VOLUME
        and L.HEADER_SIZE <= frame.offset < L.VOLUME_SIZE_LIMIT
        and L.TAG_SIZE <= frame.sealed <= L.FRAME_PLAIN_LIMIT + L.TAG_SIZE
        and 0 < frame.count <= L.JOINED_BLOBS
    )


def walk(opener: Opener, data: bytes | memoryview) -> Iterator[tuple[int, int, FrameHeader]]:
    """(number, offset, header) of each frame from the front, until one does not open: for a volume whose
    directory is lost."""
    view, at, number = memoryview(data), len(opener.header), 0
    while at + L.FRAME_HEADER_SIZE < len(view) - L.TAIL_SIZE + 1:
        try:
            head = opener.frame_header(number, view[at : at + L.FRAME_HEADER_SIZE])
        except Damaged:
            return
        yield number, at, head
        at += L.FRAME_HEADER_SIZE + head.sealed
        number += 1


def padded(used: int, volume_size: int) -> int:
    """The size to which a run's last volume of `used` bytes is padded: Padme (PURBs, PoPETS 2019), in steps
    of 4 KiB, never over `volume_size`."""
    exponent = used.bit_length() - 1
    low = exponent - exponent.bit_length()
    mask = max((1 << low) - 1 if low > 0 else 0, L.PADDING_STEP - 1)
    target = (used + mask) & ~mask
    while 0 < target - used < _MINIMUM_PADDING:
        target += L.PADDING_STEP
    return min(target, volume_size) if used <= volume_size - _MINIMUM_PADDING else volume_size


def padding(gap: int) -> list[int]:
    """Lengths of the zeros in the padding frames that fill exactly `gap` bytes (0, or at least 48)."""
    lengths, largest = [], L.FRAME_PLAIN_LIMIT - _MINIMUM_PADDING
    while gap:
        take = gap if gap <= largest else min(largest, gap - _MINIMUM_PADDING)
        lengths.append(take - _MINIMUM_PADDING)
        gap -= take
    return lengths

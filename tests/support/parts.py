"""The engine's parts without an engine: fixed keys, a store of blobs in memory, sealed volumes made by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from snapfs.repo.errors import BlobMissing, Damaged
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.records import Bundle, KeyEntry
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Kind, VolumeKind
from snapfs.repo.volumes import OBJECTS

REPOSITORY = bytes(range(16))
SALT = bytes(range(100, 132))
BUNDLE = Bundle(
    1, 1, tuple(KeyEntry(name, 1, hashlib.sha256(b"test key " + name).digest()) for name in L.NAMED_KEYS), b""
)
KEYS = Keys(BUNDLE, "test keys")


class MemoryBlobs:
    """Puts and gets blobs like a BlobWriter and a BlobReader would; `blobs` is all there is."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[Kind, bytes], bytes] = {}
        self.reads = 0

    def put(self, kind: Kind, data: bytes) -> BlobId:
        blob = KEYS.blob_id(kind, data)
        self.blobs[kind, blob] = bytes(data)
        return blob

    def get(self, blob: BlobId, kind: Kind) -> bytes:
        self.reads += 1
        try:
            data = self.blobs[kind, blob]
        except KeyError:
            raise BlobMissing(blob) from None
        if KEYS.blob_id(kind, data) != blob:
            raise Damaged("not what its id says")
        return data

    def cached(self, blob: BlobId, kind: Kind) -> bytes | None:
        return self.blobs.get((kind, blob))


def seal_volume(
    kind: VolumeKind,
    frames: Sequence[Sequence[tuple[Kind, bytes]]],
    *,
    salt: bytes = SALT,
    level: int = 0,
    size: int | None = None,
    sealer: Sealer | None = None,
) -> bytes:
    """A volume of these frames of (kind, blob), padded to `size` bytes (by default as the last one of a run is)."""
    object_kind = OBJECTS[kind]
    sealer = sealer or Sealer(KEYS.sealing(object_kind), object_kind, REPOSITORY, salt)
    out = bytearray(sealer.header)
    entries, words, ids = [], [], []
    for blobs in frames:
        mine = [framing.word(k, len(data)) for k, data in blobs]
        plain = framing.join(mine, [data for _, data in blobs])
        codec, body = framing.compress(plain, level)
        number = sealer.number()
        head, sealed = sealer.frame(number, L.FRAME_BLOBS, codec, len(blobs), len(plain), body)
        entries.append(layout.FrameEntry(number, len(out), len(sealed), len(blobs)))
        words += mine
        ids += [KEYS.blob_id(k, data) for k, data in blobs]
        out += head + sealed
    parts = layout.encode_directory(entries, words, ids)
    rest = sum(L.FRAME_HEADER_SIZE + len(p) + L.TAG_SIZE for p in parts) + L.TAIL_SIZE
    target = layout.padded(len(out) + rest, L.VOLUME_SIZE) if size is None else size
    for length in layout.padding(target - len(out) - rest):
        head, sealed = sealer.frame(sealer.number(), L.FRAME_PADDING, L.STORED, 0, length, bytes(length))
        out += head + sealed
    tail = layout.Tail(sealer.frames, len(parts), len(out))
    for part in parts:
        head, sealed = sealer.frame(sealer.number(), L.FRAME_DIRECTORY, L.STORED, 0, len(part), part)
        out += head + sealed
    return bytes(out + sealer.tail(tail.encode()))

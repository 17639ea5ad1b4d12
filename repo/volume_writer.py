"""Writing one volume: frames appended until it is full, directory and tail, read-back, publishing.

The order of writes is here: bytes, read-back, fsync, parity where it is kept, name, fsync of the folder.  Only then does the
caller enter the volume in the index.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.parity import Builder
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Kind, Location, MiB, VolumeKind
from snapfs.repo.storage.base import NewObject
from snapfs.repo.volumes import Volumes, object_name, open_frame

_COPY = 8 * MiB


@dataclass
class JoinedFrame:
    """A frame being joined: length words, ids, blobs, and their bytes in all."""

    words: list[int] = field(default_factory=list)
    ids: list[BlobId] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    size: int = 0


class VolumeWriter:
    """A volume being written: frames are appended until it is full, then finish() writes its directory."""

    def __init__(
        self, kind: VolumeKind, new: NewObject, sealer: Sealer, *, with_parity: bool = False
    ) -> None:
        self.kind = kind
        self._with_parity = with_parity
        self.new = new
        self.sealer = sealer
        self.used = len(sealer.header)
        self.frames: list[layout.FrameEntry] = []
        self.words: list[int] = []
        self.ids: list[BlobId] = []
        self._behind = hashlib.sha256()
        """Of what was written behind the frames that hold blobs."""
        new.write(sealer.header)

    def fits(self, body: int, blobs: int, volume_size: int) -> bool:
        need = L.FRAME_HEADER_SIZE + body + 3 * L.TAG_SIZE
        bound = layout.directory_size(len(self.frames) + 1, len(self.ids) + blobs)
        return (
            self.used + need + bound + L.FRAME_HEADER_SIZE + L.TAG_SIZE <= volume_size
            and len(self.ids) + blobs <= L.BLOBS_PER_VOLUME
            and len(self.frames) < L.FRAMES_PER_VOLUME - 1024  # padding and directory frames are numbered too
        )

    def append(self, frame: JoinedFrame, codec: int, plain: int, body: bytes) -> None:
        number = self.sealer.number()
        head, sealed = self.sealer.frame(number, L.FRAME_BLOBS, codec, len(frame.ids), plain, body)
        self.new.write(head, sealed)
        self.frames.append(layout.FrameEntry(number, self.used, len(sealed), len(frame.ids)))
        self.words += frame.words
        self.ids += frame.ids
        self.used += len(head) + len(sealed)

    def finish(self, volume_size: int, full: bool) -> None:
        """Padding, directory, tail.  A full volume is filled to exactly `volume_size`."""
        parts = layout.encode_directory(self.frames, self.words, self.ids)
        rest = sum(L.FRAME_HEADER_SIZE + len(p) + L.TAG_SIZE for p in parts) + L.TAIL_SIZE
        target = volume_size if full else layout.padded(self.used + rest, volume_size)
        for length in layout.padding(target - self.used - rest):
            self._write(L.FRAME_PADDING, bytes(length))
        tail = layout.Tail(self.sealer.frames, len(parts), self.used)
        for part in parts:
            self._write(L.FRAME_DIRECTORY, part)
        self._write_behind(self.sealer.tail(tail.encode()))

    def _write(self, kind: int, body: bytes) -> None:
        head, sealed = self.sealer.frame(self.sealer.number(), kind, L.STORED, 0, len(body), body)
        self._write_behind(head, sealed)

    def _write_behind(self, *parts: bytes) -> None:
        self.new.write(*parts)
        for part in parts:
            self._behind.update(part)
            self.used += len(part)

    def discard(self) -> None:
        self.new.discard()

    def publish(self, volumes: Volumes, keys: Keys) -> tuple[bytes, list[tuple[BlobId, Location]]]:
        """Check, make durable and name a finished volume; returns its name and its blobs.  Raises Damaged, StorageError."""
        try:
            name, entries, parity = self._verify(volumes, keys)
            try:
                self.new.sync()
            except StorageError:
                # A failed fsync condemns the file.  Its bytes were just checked, so they are written once more elsewhere.
                self._write_elsewhere(volumes)
                name, entries, parity = self._verify(volumes, keys)
                self.new.sync()
            if parity is not None:  # first: a volume that is there has it, and one without a volume is swept
                volumes.parity.write(name, parity.parity(name))
            self.new.publish(object_name(self.kind, name))
        finally:
            self.new.discard()
        volumes.storage.sync_names()
        return name, entries

    def _verify(
        self, volumes: Volumes, keys: Keys
    ) -> tuple[bytes, list[tuple[BlobId, Location]], Builder | None]:
        """Read the finished volume back as a stranger would: (SHA-256 of the file, its blobs, its parity if that is kept).
        Raises Damaged if it is not as meant."""
        where, kind, new, size = "a volume just written", self.kind, self.new, self.used
        header = new.read(0, len(self.sealer.header))
        opener = volumes.written(kind, self.sealer, header, where)
        digest = hashlib.sha256(header)
        parity = Builder(size) if self._with_parity else None
        if parity is not None:
            parity.update(header)
        end = new.read(size - L.TAIL_SIZE, L.TAIL_SIZE)
        tail = layout.decode_tail(opener.tail(end), size, where)
        directory = new.read(tail.offset, size - L.TAIL_SIZE - tail.offset)
        words = struct.pack(f"<{len(self.words)}I", *self.words)
        entries: list[tuple[BlobId, Location]] = []
        at, current, plain = len(header), -1, b""
        for blob, blob_kind, location in layout.decode_directory(opener, tail, directory):
            if location.frame != current:
                current = location.frame
                data = new.read(at, L.FRAME_HEADER_SIZE + location.sealed)
                digest.update(data)
                if parity is not None:
                    parity.update(data)
                at += len(data)
                head, plain = open_frame(opener, current, data)
                # Where readers look; what walks a volume without a directory goes by headers.
                if (location.frame_offset, location.sealed) != (at - len(data), head.sealed):
                    raise Damaged("its directory is not what was written", where)
                # What walking a volume without a directory goes by.
                if not words.startswith(plain[: 4 * head.blobs], 4 * len(entries)):
                    raise Damaged("a frame does not say what is in it", where)
            found = memoryview(plain)[location.offset : location.offset + location.length]
            if keys.blob_id(Kind(blob_kind), found) != blob:
                raise Damaged(
                    "a blob does not read back as it was written: is the memory of this machine sound?", where
                )
            entries.append((blob, location))
        behind = hashlib.sha256()
        while at < size:
            rest = new.read(at, min(_COPY, size - at))
            if not rest:
                raise Damaged("shorter than what was written", where)
            digest.update(rest)
            behind.update(rest)
            if parity is not None:
                parity.update(rest)
            at += len(rest)
        # Nothing opens these bytes, and they count for the name: it must not be that of a read that went wrong once.
        if behind.digest() != self._behind.digest():
            raise Damaged("it does not read back as it was written", where)
        again = layout.encode_directory(self.frames, self.words, self.ids)
        if [*layout.directory_plain(opener, tail, directory)] != again or [b for b, _ in entries] != self.ids:
            raise Damaged("its directory is not what was written", where)
        return digest.digest(), entries, parity

    def _write_elsewhere(self, volumes: Volumes) -> None:
        condemned, new = self.new, volumes.storage.create()
        try:
            for at in range(0, self.used, _COPY):
                new.write(condemned.read(at, min(_COPY, self.used - at)))
        except BaseException:
            new.discard()
            raise
        self.new = new
        condemned.discard()

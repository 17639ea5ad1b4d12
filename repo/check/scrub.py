"""Examining volumes one by one: what their directories say, and, on demand, every byte of them.

Knows volumes and keys, no index and no trees.  Each volume is read once, front to back; its SHA-256 and its frames are checked
from the same buffers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from snapfs.repo.errors import Damaged, OldKeys, RepositoryError
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.format.envelope import Opener
from snapfs.repo.format.parity import Builder, Shape
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Location, MiB, VolumeKind
from snapfs.repo.parity import MISSING, WRONG
from snapfs.repo.volumes import Volumes, object_name, open_frame

_WINDOW = MiB
"""Bytes read at once, unless a frame is longer."""
_PROBLEMS = 100
"""Problems named of one volume, at most."""

Listed = tuple[bytes, VolumeKind, int]
Entry = tuple[BlobId, int, Location]
Fingerprint = Callable[[bytes, list[tuple[BlobId, Location]]], int]
"""(name of a volume, blobs in it) -> a number that adds up."""


class VolumeReport(NamedTuple):
    name: bytes
    kind: VolumeKind
    size: int
    problems: list[str]
    blobs: int
    plain: int
    """Plaintext of its blobs, in bytes, as its directory says."""
    read: bool
    """Whether every byte of it was read."""
    fingerprint: int | None
    """Of its blobs, as Index.fingerprint has it.  None: its directory was not read whole, or nobody wants it."""
    newer: bool = False
    """These keys do not open it, but those that took their place."""
    parity: str = ""
    """What is wrong with the parity of a sound volume, if any is kept."""


class Examiner:
    def __init__(
        self, volumes: Volumes, keys: Keys, read: Collection[bytes], fingerprint: Fingerprint | None = None,
        parity: Mapping[bytes, int] | None = None,
    ) -> None:  # fmt: skip
        """`read`: names of the volumes of which every byte is to be read; `parity`: {name: size of its parity} of those that
        have one, None if it is not to be looked at."""
        self._fingerprint = fingerprint
        self._volumes = volumes.as_they_are()
        self._parity = parity
        self._storage = volumes.storage
        self._blob_keys = {int(kind): key for kind, key in keys.blob_keys.items()}
        self._to_read = read

    def examine(self, name: bytes, kind: VolumeKind, size: int) -> VolumeReport:
        """Everything there is to say of one volume.  A volume that cannot be read is a problem, never an exception."""
        found = _Reading(name, self._fingerprint)
        read = name in self._to_read
        try:
            opener = self._volumes.opener(kind, name)
            frames = found.counted(self._volumes.directory(kind, name, size))
            if read:
                self._read(found, opener, object_name(kind, name), name, size, frames)
            else:
                for _ in frames:
                    pass
        except OldKeys as error:
            return VolumeReport(name, kind, size, [str(error)], 0, 0, False, None, True)
        except RepositoryError as error:
            found.problem(error)
        print_ = found.fingerprint if found.whole and self._fingerprint is not None else None
        parity = "" if found.problems else self._wrong_parity(name, size, found.parity)
        return VolumeReport(
            name, kind, size, found.problems, found.blobs, found.plain, read, print_, parity=parity
        )

    def _wrong_parity(self, name: bytes, size: int, made: Builder | None) -> str:
        """`made`: from all bytes of the volume, if they were read."""
        if self._parity is None:
            return ""
        if name not in self._parity:
            return MISSING
        if self._parity[name] != Shape(size).length:
            return WRONG
        return "" if made is None else self._volumes.parity.differs(name, made.parity(name))

    def _read(
        self,
        found: _Reading,
        opener: Opener,
        path: str,
        name: bytes,
        size: int,
        listed: Iterator[list[Entry]],
    ) -> None:
        digest, at = hashlib.sha256(), 0
        found.parity = parity = None if self._parity is None else Builder(size)
        frames: list[list[Entry]] = []

        def window(end: int) -> None:
            nonlocal at
            data = self._storage.read(path, at, end - at)
            digest.update(data)
            if parity is not None:
                parity.update(data)
            view = memoryview(data)
            for frame in frames:
                try:
                    self._frame(opener, frame, view[frame[0][2].frame_offset - at :])
                except Damaged as error:
                    found.problem(error)
            frames.clear()
            at += len(data)
            if at != end:
                raise Damaged("cut short", path)

        for frame in listed:
            first = frame[0][2]
            end = first.frame_offset + L.FRAME_HEADER_SIZE + first.sealed
            if first.frame_offset < at or end > size:
                raise Damaged("a directory whose frames are out of order", path)
            if frames and end - at > _WINDOW:
                window(first.frame_offset)
            frames.append(frame)
        while at < size:
            last = frames[-1][0][2] if frames else None
            window(last.frame_offset + L.FRAME_HEADER_SIZE + last.sealed if last else min(size, at + _WINDOW))
        if digest.digest() != name:
            found.problem(Damaged("its bytes are not those its name stands for", path))

    def _frame(self, opener: Opener, entries: list[Entry], data: memoryview) -> None:
        number = entries[0][2].frame
        head, plain = open_frame(opener, number, data)
        if head.kind != L.FRAME_BLOBS or head.blobs != len(entries):
            raise Damaged(f"frame {number} is not what the directory says", opener.where)
        view = memoryview(plain)
        lengths = framing.split(plain, head.blobs, opener.where)
        for (blob, kind, at), (found_kind, offset, length) in zip(entries, lengths, strict=True):
            if found_kind != kind or offset != at.offset or length != at.length:
                raise Damaged(f"frame {number} is not what the directory says", opener.where)
            if keyed_hash(self._blob_keys[kind], view[offset : offset + length]) != blob:
                raise Damaged(
                    f"blob {blob.hex()[:16]} in frame {number} is not what its id says", opener.where
                )


class _Reading:
    """What is known of a volume so far."""

    def __init__(self, name: bytes, fingerprint: Fingerprint | None) -> None:
        self._name = name
        self._fingerprint = fingerprint
        self.problems: list[str] = []
        self.blobs = self.plain = self.fingerprint = 0
        self.whole = False
        """Its directory was read to the end."""
        self.parity: Builder | None = None
        """Of its bytes, as far as they were read."""

    def problem(self, error: RepositoryError) -> None:
        if len(self.problems) < _PROBLEMS:
            self.problems.append(str(error))

    def counted(self, entries: Iterator[Entry]) -> Iterator[list[Entry]]:
        """Frame by frame."""
        for _, group in groupby(entries, lambda entry: entry[2].frame):
            frame = list(group)
            self.blobs += len(frame)
            self.plain += sum(at.length for _, _, at in frame)
            if self._fingerprint is not None:
                self.fingerprint += self._fingerprint(self._name, [(blob, at) for blob, _, at in frame])
            yield frame
        self.whole = True

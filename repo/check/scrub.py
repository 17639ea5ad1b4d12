"""Examining volumes one by one: what their directories say, and, on demand, every byte of them.

Knows volumes and keys, no index and no trees.  Each volume is read once, front to back; its SHA-256 and its frames are checked
from the same buffers.  Crypto, zstd and hashes release the GIL, so two threads use two cores.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from snapfs.repo.errors import Damaged, RepositoryError
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.format.envelope import Opener
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Location, MiB, VolumeKind
from snapfs.repo.volumes import Volumes, object_name, open_frame

THREADS = 2
_WINDOW = MiB
"""Bytes read at once, unless a frame is longer."""
_PROBLEMS = 100
"""Problems named of one volume, at most."""

Listed = tuple[bytes, VolumeKind, int]
Entry = tuple[BlobId, int, Location]


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
    """Sum over its blobs of fingerprint(): compared with what the index says of it.  None: its directory was not read whole."""


def fingerprint(key: bytes, at: Location) -> int:
    """A number for "this blob (first 16 bytes of its id) lies here": equal within this process only."""
    return hash((key, at[1:]))


class Examiner:
    def __init__(self, volumes: Volumes, keys: Keys, read: Collection[bytes]) -> None:
        """`read`: names of the volumes of which every byte is to be read."""
        self._volumes = volumes
        self._storage = volumes.storage
        self._blob_keys = {int(kind): key for kind, key in keys.blob_keys.items()}
        self._to_read = read

    def examine_all(self, listing: Iterable[Listed]) -> Iterator[VolumeReport]:
        """Reports in the order of the listing; some volumes ahead are being read meanwhile."""
        running: deque[Future[VolumeReport]] = deque()
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="scrub")
        try:
            for listed in listing:
                running.append(pool.submit(self.examine, *listed))
                if len(running) > 2 * THREADS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def examine(self, name: bytes, kind: VolumeKind, size: int) -> VolumeReport:
        """Everything there is to say of one volume.  A volume that cannot be read is a problem, never an exception."""
        found = _Reading()
        read = name in self._to_read
        try:
            opener = self._volumes.opener(kind, name)
            entries = found.counted(self._volumes.directory(kind, name, size))
            if read:
                self._read(found, opener, object_name(kind, name), name, size, entries)
            else:
                for _ in entries:
                    pass
        except RepositoryError as error:
            found.problem(error)
        print_ = found.fingerprint if found.whole else None
        return VolumeReport(name, kind, size, found.problems, found.blobs, found.plain, read, print_)

    def _read(
        self, found: _Reading, opener: Opener, path: str, name: bytes, size: int, entries: Iterator[Entry]
    ) -> None:
        digest, at = hashlib.sha256(), 0
        frames: list[list[Entry]] = []

        def window(end: int) -> None:
            nonlocal at
            data = self._storage.read(path, at, end - at)
            digest.update(data)
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

        for _, group in groupby(entries, lambda entry: entry[2].frame):
            frame = list(group)
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

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.blobs = self.plain = self.fingerprint = 0
        self.whole = False
        """Its directory was read to the end."""

    def problem(self, error: RepositoryError) -> None:
        if len(self.problems) < _PROBLEMS:
            self.problems.append(str(error))

    def counted(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            at = entry[2]
            self.blobs += 1
            self.plain += at.length
            self.fingerprint += fingerprint(entry[0][:16], at)
            yield entry
        self.whole = True

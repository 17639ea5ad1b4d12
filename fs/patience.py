"""Blobs for the event loop, which must not wait, and for its worker threads, which may.

The same reading code runs in both: on the loop it is answered from memory or interrupted by NotAtHand, and is then run again
in a worker.  Large blobs are kept here after their id was checked, since the kernel asks for one in many small pieces; a frame
that holds nothing else is not kept beside it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from snapfs.repo.blobs import BlobReader
from snapfs.repo.format.labels import JOINED_BLOBS, JOINED_DATA
from snapfs.repo.heap import Ceiling
from snapfs.repo.model import BlobId, KiB, Kind, MiB

_LARGE = 64 * KiB
_REST = 72 * MiB
"""Memory of the program itself, of the pages of the index, and of frames on their way."""


class NotAtHand(Exception):
    """The answer is not in memory, and this is the thread of the event loop."""


class PatientBlobs:
    """get() as BlobReader has it, except on `loop_thread` (threading.get_ident(); None: no thread is special)."""

    def __init__(self, blobs: BlobReader, limit: int) -> None:
        """`limit`: bytes of opened frames and kept blobs together.  Frames can always have a third of it."""
        self._blobs = blobs
        self.limit = limit
        self._frames = blobs.frames
        self._frames.largest = JOINED_DATA + 4 * JOINED_BLOBS
        self._frames.resize(limit)
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._ceiling = Ceiling(limit + _REST)
        self.loop_thread: int | None = None

    def must_not_wait(self) -> None:
        """Raise NotAtHand on the event loop: what follows reads from the storage."""
        if threading.get_ident() == self.loop_thread:
            raise NotAtHand

    def at_hand(self, blob: BlobId) -> bool:
        return blob in self._kept or self._blobs.is_open(blob)

    def get(self, blob: BlobId, kind: Kind) -> bytes:
        """The plaintext of a blob.  Raises NotAtHand, BlobMissing, Damaged, StorageError."""
        with self._lock:
            kept = self._kept.get(blob)
            if kept is not None:
                self._kept.move_to_end(blob)
                return kept
        if threading.get_ident() == self.loop_thread:
            at_hand = self._blobs.cached(blob, kind)
            if at_hand is None:
                raise NotAtHand
            data = at_hand
        else:
            data = self._blobs.get(blob, kind)
            self._ceiling.allocated(len(data))
        if kind is Kind.CONTENT and len(data) >= _LARGE:
            self._keep(blob, data)
        return data

    def first_to_go(self, blob: BlobId) -> None:
        """Its end was read, so that it is wanted less than any other."""
        with self._lock:
            if blob in self._kept:
                self._kept.move_to_end(blob, last=False)

    def _keep(self, blob: BlobId, data: bytes) -> None:
        with self._lock:
            if blob not in self._kept:
                self._kept[blob] = data
                self._size += len(data)
            limit = self.limit - min(self._frames.size, self.limit // 3)
            while self._size > limit and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._size -= len(old)
            self._frames.resize(self.limit - self._size)

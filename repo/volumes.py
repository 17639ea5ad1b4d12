"""Reading volumes: their names, their directories, single frames.  Knows no index.

What does not open as the disk has it is read once more with the help of the volume's parity, if there is one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from snapfs.repo.errors import Damaged, OldKeys, StorageError, UnsupportedFormat
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format import volume as layout
from snapfs.repo.format.envelope import FrameHeader, Opener, Sealer
from snapfs.repo.keys import Keys
from snapfs.repo.lost_header import likely_headers
from snapfs.repo.mending import Mending, Read
from snapfs.repo.model import BlobId, Kind, Location, VolumeKind
from snapfs.repo.parity import Parity
from snapfs.repo.storage.base import Storage, hash_in

FOLDERS = {VolumeKind.DATA: "data", VolumeKind.TREE: "trees"}
OBJECTS = {VolumeKind.DATA: L.DATA_VOLUME, VolumeKind.TREE: L.TREE_VOLUME}
T = TypeVar("T")

_TAIL_READ = 64 * 1024
_SECTOR = 4096
_OPENERS = 256


def object_name(kind: VolumeKind, name: bytes) -> str:
    """Where a volume of this name (32 bytes) lies in the storage."""
    text = name.hex()
    return f"{FOLDERS[kind]}/{text[:2]}/{text}"


class Volumes:
    """The volumes of one repository.  Safe to use from several threads."""

    def __init__(
        self,
        storage: Storage,
        keys: Keys,
        repository: bytes,
        mended: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """`mended`: is told the name of a volume of which something was read that only its parity gave."""
        self.storage = storage
        self.parity = Parity(storage)
        self._keys = keys
        self._repository = repository
        self._openers: OrderedDict[bytes, Opener] = OrderedDict()
        self._of_newer_keys: set[bytes] = set()
        """Names of volumes that a reader with old keys cannot open, and that are what their names say."""
        self._mending: Mending | None = Mending(self.parity, mended)
        self._raw: Volumes | None = None
        self._lock = threading.Lock()

    def as_they_are(self) -> Volumes:
        """The same, read without the help of parity: for whoever asks whether they are damaged.  Closed with these."""
        if self._raw is None:
            raw = Volumes(self.storage, self._keys, self._repository)
            raw._mending, raw._of_newer_keys = None, self._of_newer_keys
            self._raw = raw
        return self._raw

    def close(self) -> None:
        """Forget the keys of all volumes."""
        with self._lock:
            self._openers.clear()
        if self._raw is not None:
            self._raw.close()

    def listing(self) -> dict[bytes, tuple[VolumeKind, int]]:
        """{name: (kind, size)} of every volume there is.  Names that are none of ours are passed over."""
        found = {}
        for kind, folder in FOLDERS.items():
            for path, size in self.storage.list(folder):
                name = hash_in(path)
                if name is not None and path == object_name(kind, name):
                    found[name] = (kind, size)
        return found

    def opener(self, kind: VolumeKind, name: bytes) -> Opener:
        """Raises StorageError if the volume cannot be read, Damaged if its header is not as written, UnsupportedFormat."""
        with self._lock:
            opener = self._openers.get(name)
            if opener is not None:
                self._openers.move_to_end(name)
                return opener
        return self._keep(name, self._helped(kind, name, 0, lambda read, _: self._opened(kind, name, read)))

    def _keep(self, name: bytes, opener: Opener) -> Opener:
        with self._lock:
            self._openers[name] = opener
            if len(self._openers) > _OPENERS:
                self._openers.popitem(last=False)
        return opener

    def _opened(self, kind: VolumeKind, name: bytes, read: Read) -> Opener:
        path = object_name(kind, name)
        try:
            return self.make_opener(kind, read(0, L.BACKUP_ONLY_HEADER_SIZE), path)
        except UnsupportedFormat as error:
            # What a newer snapfs wrote has the hash that its name says: else a bit of the header flipped.
            size = self.storage.size(path) or 0
            known = name in self._of_newer_keys and isinstance(error, OldKeys)
            if not known and (
                size > L.VOLUME_SIZE_LIMIT or hashlib.sha256(self._read(path, 0, size)).digest() != name
            ):
                raise Damaged("bad header", path) from None
            if isinstance(error, OldKeys):
                self._of_newer_keys.add(name)
            raise

    def is_there(self, name: bytes) -> bool:
        """Whether there is a volume of this name, of whatever kind."""
        return any(self.storage.size(object_name(kind, name)) is not None for kind in VolumeKind)

    def is_backup_only(self, kind: VolumeKind, name: bytes) -> bool:
        """Whether a machine wrote it that can only back up: then nobody has seen yet whether its ids are those of its blobs."""
        return self.opener(kind, name).wrap == L.WRAP_BACKUP_ONLY

    def make_opener(self, kind: VolumeKind, header: bytes, where: str) -> Opener:
        """`header`: the volume's first bytes, all of its header at least."""
        return self._keys.opener(OBJECTS[kind], header, where, self._repository)

    def written(self, kind: VolumeKind, sealer: Sealer, header: bytes, where: str) -> Opener:
        """Of a volume that was just sealed, as it was read back."""
        return self._keys.written(sealer, header, where, OBJECTS[kind], self._repository)

    def frame(self, kind: VolumeKind, name: bytes, at: Location) -> tuple[FrameHeader, bytes]:
        """Read, open and decompress the frame at a location: (header, plaintext).  One pread."""
        length = L.FRAME_HEADER_SIZE + at.sealed

        def work(opener: Opener, read: Read, _: int) -> tuple[FrameHeader, bytes]:
            return open_frame(opener, at.frame, read(at.frame_offset, length))

        return self._opening(kind, name, 0, work)

    def directory(self, kind: VolumeKind, name: bytes, size: int) -> Iterator[tuple[BlobId, int, Location]]:
        """(id, kind, location) of every blob, from the end of the volume alone.  Raises Damaged, StorageError."""
        opener, tail, data = self._directory(kind, name, size)
        return layout.decode_directory(opener, tail, data)

    def frames(self, kind: VolumeKind, name: bytes, size: int) -> Iterator[layout.FrameEntry]:
        opener, tail, data = self._directory(kind, name, size)
        return layout.directory_frames(opener, tail, data)

    def _directory(self, kind: VolumeKind, name: bytes, size: int) -> tuple[Opener, layout.Tail, memoryview]:
        """Tail, and the directory still sealed."""
        path = object_name(kind, name)

        def work(opener: Opener, read: Read, size: int) -> tuple[Opener, layout.Tail, memoryview]:
            tail, data = self._tail(opener, path, size, read)
            # Damage is to be met here, and not only where it is read part by part.
            for _ in layout.directory_plain(opener, tail, data):
                pass
            return opener, tail, data

        return self._opening(kind, name, size, work)

    def whole(self, kind: VolumeKind, name: bytes, write: Callable[[bytes], None] = lambda _: None) -> bool:
        """Whether its parity makes a damaged volume what its name says; `write` gets it, piece by piece."""
        return self._mending is not None and self._mending.whole(name, object_name(kind, name), write)

    def renewed(self, kind: VolumeKind, name: bytes) -> None:
        """It was written anew, as it had been at first."""
        self._look_anew(kind, name)
        if self._raw is not None:
            self._raw._look_anew(kind, name)
        if self._mending is not None:
            self._mending.forget(name)

    def _look_anew(self, kind: VolumeKind, name: bytes) -> None:
        """Open its file again, and go by its header once more."""
        self.storage.let_go((object_name(kind, name),))
        with self._lock:
            self._openers.pop(name, None)

    def was_mended(self, name: bytes) -> bool:
        """Whether something of it was read that only its parity gave."""
        return self._mending is not None and self._mending.was_needed(name)

    def _opening(self, kind: VolumeKind, name: bytes, size: int, work: Callable[[Opener, Read, int], T]) -> T:
        """What `work` makes of a volume: of its opener, a way to read it, and its size."""

        def mended(read: Read, size: int) -> T:
            # Its header may be damaged so that it makes an opener, which then opens nothing.
            other = self._opened(kind, name, read)
            found = work(other, read, size)
            self._keep(name, other)
            return found

        return self._helped(
            kind, name, size, lambda read, size: work(self.opener(kind, name), read, size), mended
        )

    def _helped(self, kind: VolumeKind, name: bytes, size: int, work: Callable[[Read, int], T],
                mended: Callable[[Read, int], T] | None = None) -> T:  # fmt: skip
        """What `work` makes of a volume, of a way to read it, and its size; where it is damaged, what `mended` makes of it as its
        parity has it."""
        path = object_name(kind, name)

        def read(offset: int, length: int) -> bytes:
            return self._read(path, offset, length)

        with contextlib.suppress(Damaged):
            return work(read, size)
        # It may have been one read that went wrong, or a file that another process has put right since it was opened here.
        self._look_anew(kind, name)
        if self._mending is None:
            return work(read, size)
        return self._mending.helped(name, path, size, read, work, mended or work)

    def _read(self, path: str, offset: int, length: int) -> bytes:
        """A part of a volume.  A place that the disk does not give back any more is damage, which the rest of the repository
        need not suffer from; anything else that fails may be mended (a cable, a permission) and stops what is being done."""
        try:
            return self.storage.read(path, offset, length)
        except StorageError as error:
            if error.errno != errno.EIO:
                raise
            raise Damaged("the disk cannot read it: Input/output error", path) from error

    def what_can_be_read(self, path: str) -> tuple[bytes, bool]:
        """A whole volume, with zeros for what the disk does not give back; and whether there is such a part.  Nothing of a file
        that is longer than any volume."""
        size = self.storage.size(path) or 0
        if size > L.VOLUME_SIZE_LIMIT:
            return b"", False
        with contextlib.suppress(Damaged):
            return self._read(path, 0, size), False
        parts = []
        for at in range(0, size, _SECTOR):
            wanted = min(_SECTOR, size - at)
            try:
                parts.append(self._read(path, at, wanted))
            except Damaged:
                parts.append(bytes(wanted))
        return b"".join(parts), True

    def blob_id(self, kind: Kind, data: bytes) -> BlobId:
        return self._keys.blob_id(kind, data)

    def mended_headers(self, kind: VolumeKind, damaged: bytes) -> Iterator[bytes]:
        """What the header of a volume may have been that begins with these bytes."""
        return likely_headers(self._keys, self._repository, OBJECTS[kind], damaged)

    def _tail(self, opener: Opener, path: str, size: int, read: Read) -> tuple[layout.Tail, memoryview]:
        if size < L.HEADER_SIZE + L.TAIL_SIZE:
            raise Damaged("cut short", path)
        if size > L.VOLUME_SIZE_LIMIT:
            raise Damaged("longer than a volume can be", path)
        start = max(size - _TAIL_READ, 0)
        end = read(start, size - start)
        if len(end) != size - start:
            raise Damaged("cut short", path)
        tail = layout.decode_tail(opener.tail(end[-L.TAIL_SIZE :]), size, path)
        if tail.offset >= start:
            return tail, memoryview(end)[tail.offset - start : -L.TAIL_SIZE]
        return tail, memoryview(read(tail.offset, size - tail.offset - L.TAIL_SIZE))


def open_frame(opener: Opener, number: int, data: bytes | memoryview) -> tuple[FrameHeader, bytes]:
    """Header and plaintext of the blob frame whose bytes `data` begins with.  Raises Damaged."""
    view = memoryview(data)
    head = opener.frame_header(number, view[: L.FRAME_HEADER_SIZE])
    body = view[L.FRAME_HEADER_SIZE : L.FRAME_HEADER_SIZE + head.sealed]
    if len(body) != head.sealed:
        raise Damaged(f"cut short in frame {number}", opener.where)
    return head, framing.decompress(head.codec, opener.body(number, body), head.plain, opener.where)


def is_absent(error: Exception) -> bool:
    return isinstance(error, StorageError) and error.errno == errno.ENOENT

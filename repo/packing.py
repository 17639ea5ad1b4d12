"""put(blob): the way in.  Known? done.  Else joined with its neighbours into a frame, compressed, sealed, appended to the open
volume; a finished volume is read back and checked, fsynced, published, and only then entered in the index.

The calling thread only hashes, looks up and joins.  Compressing and everything after it happens in worker threads, which hold
the lock of a volume just to seal and append.  A failure of the repository is kept and raised by every later call: a writer
that failed once stays failed.  Files of different owners never share a frame.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

from snapfs.repo.errors import SnapfsError, StorageError, UsageError
from snapfs.repo.format import frame as framing
from snapfs.repo.format import labels as L
from snapfs.repo.format.records import least_volume
from snapfs.repo.index import Index
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, KiB, Kind, MiB, VolumeKind
from snapfs.repo.system import System
from snapfs.repo.volume_writer import JoinedFrame, VolumeWriter
from snapfs.repo.volumes import OBJECTS, Volumes

WORKERS = 2
_DATA, _TREE = int(VolumeKind.DATA), int(VolumeKind.TREE)  # an Enum's properties are slow
_BUDGET = 24 * MiB
"""Plaintext waiting for a worker, at most."""
_OPEN_OWNERS = 32
_REMEMBERED = 100_000


@dataclass
class Stored:
    """What was new so far: blobs, their plaintext, and the volumes as they lie in the storage (bytes)."""

    data_blobs: int = 0
    tree_blobs: int = 0
    plain: int = 0
    volumes: int = 0

    def count(self, kind: Kind, length: int) -> None:
        self.plain += length
        if kind is Kind.CONTENT:
            self.data_blobs += 1
        else:
            self.tree_blobs += 1


class Putter(Protocol):
    """What takes blobs: a BlobWriter, or the counter of a dry run."""

    stored: Stored

    def known(self, blob: BlobId) -> bool: ...
    def put(self, kind: Kind, data: bytes | memoryview, owner: int = 0) -> BlobId: ...


class DryWriter:
    """Counts what would be stored.

    Of the blobs that are new it remembers only the last ones, so its count is an upper bound.
    """

    def __init__(self, index: Index, keys: Keys) -> None:
        self._index = index
        self._keys = keys
        self._recent: OrderedDict[BlobId, None] = OrderedDict()
        self.stored = Stored()

    def known(self, blob: BlobId) -> bool:
        return blob in self._recent or self._index.holder(blob) is not None

    def put(self, kind: Kind, data: bytes | memoryview, owner: int = 0) -> BlobId:
        blob = self._keys.blob_id(kind, data)
        if not self.known(blob):
            self._recent[blob] = None
            if len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
            self.stored.count(kind, len(data))
        return blob


class BlobWriter:
    """Stores blobs.

    put(), known() and flush() belong to one thread; use as a context manager, leaving it discards what is not
    flushed.
    """

    def __init__(self, index: Index, volumes: Volumes, keys: Keys, repository: bytes, system: System, client: bytes,
                 *, volume_size: int, largest_blob: int, compression: str = "auto",
                 avoid: Collection[int] = (),
                 keep: Callable[[Kind, BlobId, bytes | memoryview], None] | None = None) -> None:  # fmt: skip
        """`avoid`: numbers of volumes that are to go: what is only there is stored again.  `keep`: is told all blobs of trees."""
        least = least_volume(largest_blob)
        if not least <= volume_size <= L.VOLUME_SIZE_LIMIT:
            raise UsageError(
                f"volume size must be between {least // KiB} KiB and {L.VOLUME_SIZE_LIMIT // MiB} MiB"
            )
        self._index = index
        self._volumes = volumes
        self._storage = volumes.storage
        self._keys = keys
        self._repository = repository
        self._system = system
        self._client = client
        self._avoid = avoid
        self._keep = keep
        self._volume_size = volume_size
        self._level = 0 if compression == "off" else framing.LEVELS[compression]
        self._last = threading.local()
        """`codec` of the frame that this worker compressed last."""
        self._pending: set[BlobId] = set()
        """Blobs that are on their way and not in the index yet: at most what the open volumes and the queue hold."""
        self._joining: OrderedDict[tuple[int, int], JoinedFrame] = OrderedDict()
        self._open: dict[VolumeKind, list[VolumeWriter]] = {kind: [] for kind in VolumeKind}
        """At most two of a kind, the fuller one first."""
        self._unpublished: set[VolumeWriter] = set()
        """The open volumes, and those that wait for a worker to finish them."""
        self._locks = {kind: threading.Lock() for kind in VolumeKind}
        self._changed = threading.Condition()
        self._waiting = 0
        self._failure: BaseException | None = None
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pack")
        self.stored = Stored()
        self.relied_on: set[int] = set()
        """Numbers of the volumes that known() answered for: they must still be there at the commit."""
        self.published: set[bytes] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._fail(StorageError("the backup was given up"))
        self._pool.shutdown(wait=True, cancel_futures=True)
        for volume in self._unpublished:
            volume.discard()

    def known(self, blob: BlobId) -> bool:
        """Whether the blob is in a volume that new snapshots may rely on, or on its way into one."""
        if blob in self._pending:
            return True
        volume = self._index.holder(blob)
        if volume in self._avoid:
            volume = self._index.holder_but(blob, self._avoid)
        if volume is None:
            return False
        self.relied_on.add(volume)
        return True

    def put(self, kind: Kind, data: bytes | memoryview, owner: int = 0) -> BlobId:
        """Store a blob unless it is known; returns its id.  A memoryview is copied if it is kept.  Raises
        RepositoryError."""
        if self._failure is not None:
            self._raise()
        blob = self._keys.blob_id(kind, data)
        if self._keep is not None and kind is not Kind.CONTENT:
            self._keep(kind, blob, data)
        if self.known(blob):
            return blob
        self._pending.add(blob)
        length, volume = len(data), _DATA if kind is Kind.CONTENT else _TREE
        limit = L.JOINED_DATA if volume is _DATA else L.JOINED_TREE
        key = (volume, owner)
        frame = self._joining.get(key)
        if frame is not None and (frame.size + length > limit or len(frame.ids) >= L.JOINED_BLOBS):
            self._submit(key)
            frame = None
        if frame is None:
            frame = self._joining[key] = JoinedFrame()
            if len(self._joining) > _OPEN_OWNERS:
                self._submit(next(iter(self._joining)))
        frame.words.append(kind << 24 | length)  # framing.word, without the call
        frame.ids.append(blob)
        frame.blobs.append(data if isinstance(data, bytes) else bytes(data))
        frame.size += length
        if frame.size >= limit:
            self._submit(key)
        self.stored.count(kind, length)
        return blob

    def end_frames(self) -> None:
        """What comes from now on is not joined with what came before."""
        for key in list(self._joining):
            self._submit(key)

    def flush(self) -> None:
        """Make everything put so far durable and known to the index.  Raises what went wrong on the way."""
        self.end_frames()
        self._wait(0)
        for kind, volumes in self._open.items():
            while volumes:
                self._run(self._finish, kind, volumes.pop(0), False)
        self._wait(0)
        self._storage.sync_names()
        if self._failure is not None:
            self._raise()

    # ---- between the calling thread and the workers --------------------------------------------------------------

    def _submit(self, key: tuple[int, int]) -> None:
        frame = self._joining.pop(key)
        self._wait(_BUDGET)
        self._run(self._store, VolumeKind(key[0]), frame, weight=frame.size + 1)

    def _run(self, work: Callable[..., None], *args: object, weight: int = 1) -> None:
        with self._changed:
            self._waiting += weight

        def job() -> None:
            try:
                if self._failure is None:
                    work(*args)
            except BaseException as error:  # noqa: BLE001  kept, and raised in the calling thread
                self._fail(error)
            finally:
                with self._changed:
                    self._waiting -= weight
                    self._changed.notify_all()

        self._pool.submit(job)

    def _wait(self, limit: int) -> None:
        with self._changed:
            while self._waiting > limit and self._failure is None:
                self._changed.wait(1)
        if self._failure is not None:
            self._raise()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _raise(self) -> None:
        assert self._failure is not None
        if isinstance(self._failure, SnapfsError):
            raise self._failure
        if isinstance(self._failure, MemoryError):
            raise StorageError(
                "out of memory while writing volumes: nothing was lost, run this again"
            ) from self._failure
        raise self._failure

    # ---- in the workers ------------------------------------------------------------------------------------------

    def _store(self, kind: VolumeKind, frame: JoinedFrame) -> None:
        plain = framing.join(frame.words, frame.blobs)
        # Where the last frame shrank, so will this one, mostly: then samples would cost a fifth of compressing.
        codec, body = framing.compress(
            plain, self._level, sample=getattr(self._last, "codec", L.STORED) == L.STORED
        )
        self._last.codec = codec
        finished = None
        with self._locks[kind]:
            volumes = self._open[kind]
            fitting = (v for v in volumes if v.fits(len(body), len(frame.ids), self._volume_size))
            volume = next(fitting, None)
            if volume is None:
                # What the fuller volume has no room for goes into a second one; smaller frames still fill the first.
                # With one alone, half a frame of padding was lost in each: one in a hundred bytes of a disk image.
                if len(volumes) > 1:
                    finished = volumes.pop(0)
                volume = self._new_volume(kind)
                volumes.append(volume)
            volume.append(frame, codec, len(plain), body)
        if finished is not None:
            self._finish(kind, finished, True)

    def _new_volume(self, kind: VolumeKind) -> VolumeWriter:
        sealer = self._keys.sealer(OBJECTS[kind], self._repository, self._system, self._client)
        new = self._storage.create()
        try:
            volume = VolumeWriter(kind, new, sealer, with_parity=self._volumes.parity.is_kept())
        except BaseException:
            new.discard()
            raise
        self._unpublished.add(volume)
        return volume

    def _finish(self, kind: VolumeKind, volume: VolumeWriter, full: bool) -> None:
        volume.finish(self._volume_size, full)
        name, entries = volume.publish(self._volumes, self._keys)
        self._unpublished.discard(volume)
        self._index.add(name, kind, volume.used, entries)
        self.published.add(name)
        self.stored.volumes += volume.used
        self._pending.difference_update(blob for blob, _ in entries)

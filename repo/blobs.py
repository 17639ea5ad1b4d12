"""get(id): where index, volume, frame and hash meet on the way out, with the cache of opened frames.

Every blob is compared with its id before anyone sees it.  A blob that is not found, or whose volume does not open, makes the
index compare itself with the storage once, and other copies are tried before anybody is told of damage.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from snapfs.repo.errors import BlobMissing, Damaged, RepositoryError, StorageError, VolumeMissing
from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.index import Index, IndexBroken
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Kind, Location, MiB
from snapfs.repo.volumes import Volumes, is_absent, object_name

log = logging.getLogger(__name__)

CACHE_BYTES = 64 * MiB
_MOVES = 4
_FrameKey = tuple[int, int]


class FrameCache:
    """Opened frames, least recently used out first, at most `limit` bytes; larger ones than `largest` are not kept.

    A frame wanted by several threads is opened once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = self.largest = limit
        self.size = 0
        self._frames: OrderedDict[_FrameKey, bytes] = OrderedDict()
        self._coming: dict[_FrameKey, Future[bytes]] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: _FrameKey) -> bool:
        return key in self._frames

    def peek(self, key: _FrameKey) -> bytes | None:
        with self._lock:
            frame = self._frames.get(key)
            if frame is not None:
                self._frames.move_to_end(key)
            return frame

    def get(self, key: _FrameKey, load: Callable[[], bytes]) -> bytes:
        with self._lock:
            frame = self._frames.get(key)
            if frame is not None:
                self._frames.move_to_end(key)
                return frame
            coming = self._coming.get(key)
            if coming is None:
                mine: Future[bytes] = Future()
                self._coming[key] = mine
        if coming is not None:
            with contextlib.suppress(Exception):
                return coming.result()
            return load()  # what another met may be over by now; if not, it is met again
        try:
            frame = load()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            if len(frame) <= self.largest:
                self._frames[key] = frame
                self.size += len(frame)
                self._evict()
        mine.set_result(frame)
        return frame

    def resize(self, limit: int) -> None:
        with self._lock:
            self.limit = limit
            self._evict()

    def _evict(self) -> None:
        while self.size > self.limit and len(self._frames) > 1:
            _, old = self._frames.popitem(last=False)
            self.size -= len(old)

    def clear(self) -> None:
        with self._lock:
            self._frames.clear()
            self.size = 0


class BlobReader:
    """Reads blobs by id, from any thread.

    `refresh(thorough)` brings the index up to date and says whether anything changed; `damaged` is told the names of volumes in
    which a blob did not open at the second try.
    """

    def __init__(self, index: Index, volumes: Volumes, keys: Keys, refresh: Callable[[bool], bool],
                 cache_bytes: int = CACHE_BYTES, damaged: Callable[[list[bytes]], None] = lambda _: None) -> None:  # fmt: skip
        self._index = index
        self._volumes = volumes
        self._keys = keys.blob_keys
        self._refresh = refresh
        self._damaged = damaged
        self._told: set[bytes] = set()
        self._refreshing = threading.Lock()
        self._rebuilt = False
        self.frames = FrameCache(cache_bytes)

    def get(self, blob: BlobId, kind: Kind) -> bytes:
        """The plaintext of a blob.  Raises BlobMissing, Damaged, StorageError."""
        tried: set[Location] = set()
        for _ in range(_MOVES):
            try:
                return self._try_copies(blob, kind, tried=tried)
            except (RepositoryError, IndexBroken) as error:
                if self._has_moved(blob, tried):
                    continue  # prune, in another process of this client, was quicker
                # No warning: the index may only not know yet what another run has written, and real damage is raised below.
                log.info("blob %s: %s; looking again", blob.hex()[:16], error)
                break
        bad: list[bytes] = []
        self._look_again()
        try:
            for _ in range(_MOVES):
                try:
                    return self._try_copies(blob, kind, bad, tried)
                except (BlobMissing, VolumeMissing):
                    # Overtaken by another prune; another thread may have noticed, and this one sees its new place only.
                    if not (self._is_overtaken() or self._has_moved(blob, tried)):
                        raise
            return self._try_copies(blob, kind, bad)
        except IndexBroken as error:
            raise StorageError(f"index: {error}") from error
        finally:
            if new := [name for name in bad if name not in self._told]:
                self._told.update(new)
                with contextlib.suppress(RepositoryError):  # a full disk, say: what is raised is the damage
                    self._damaged(new)

    def cached(self, blob: BlobId, kind: Kind) -> bytes | None:
        """The plaintext if its frame is open already: never reads a file.  None for anything else, damage too."""
        try:
            location = self._index.get(blob)
        except IndexBroken:
            return None
        if location is None:
            return None
        frame = self.frames.peek((location.volume, location.frame))
        if frame is None:
            return None
        data = frame[location.offset : location.offset + location.length]
        return data if keyed_hash(self._keys[kind], data) == blob else None

    def is_open(self, blob: BlobId) -> bool:
        """Whether its frame is open already, so that cached() has a chance.  Quick: nothing is compared with the id."""
        try:
            location = self._index.get(blob)
        except IndexBroken:
            return False
        return location is not None and (location.volume, location.frame) in self.frames

    def _has_moved(self, blob: BlobId, tried: set[Location]) -> bool:
        """Whether the index knows a place of it that it did not know before."""
        try:
            return any(at not in tried for at in self._index.copies(blob))
        except IndexBroken:
            return False

    def _try_copies(
        self, blob: BlobId, kind: Kind, bad: list[bytes] | None = None, tried: set[Location] | None = None
    ) -> bytes:
        """`bad`: gets the names of the volumes in which it does not open; `tried`: the places."""
        problem: RepositoryError | None = None
        for location in self._places(blob):
            if tried is not None:
                tried.add(location)
            try:
                return self.read_at(blob, kind, location)
            except MemoryError as error:  # never to be taken for damage
                raise StorageError("out of memory") from error
            except RepositoryError as error:
                problem = problem or error
                if bad is not None and isinstance(error, Damaged) and not isinstance(error, VolumeMissing):
                    bad.append(self._index.volume(location.volume).name)
        raise problem or BlobMissing(blob)

    def _places(self, blob: BlobId) -> Iterator[Location]:
        """The best place first, which is nearly always the only one; the others are looked for only after it failed."""
        first = self._index.get(blob)
        if first is not None:
            yield first
        yield from (at for at in self._index.copies(blob) if at != first)

    def read_at(self, blob: BlobId, kind: Kind, at: Location) -> bytes:
        """The blob from this place and no other.  Raises Damaged, StorageError."""
        volume = self._index.volume(at.volume)
        try:
            frame = self.frames.get(
                (at.volume, at.frame), lambda: self._volumes.frame(volume.kind, volume.name, at)[1]
            )
        except StorageError as error:
            if is_absent(error):
                raise VolumeMissing("the volume is missing", object_name(volume.kind, volume.name)) from error
            raise
        data = frame[at.offset : at.offset + at.length]
        if keyed_hash(self._keys[kind], data) != blob:
            raise Damaged(f"blob {blob.hex()[:16]} is not what its id says", volume.name.hex())
        return data

    def _is_overtaken(self) -> bool:
        """Whether volumes came or went since the last look."""
        with self._refreshing:
            changed = self._refresh(False)
            if changed:
                self.frames.clear()
            return changed

    def _look_again(self) -> None:
        """New volumes first, which is cheap; if there are none, the whole index, once in the life of this reader."""
        with self._refreshing:
            if self._refresh(False):
                self.frames.clear()
            elif not self._rebuilt:
                self._rebuilt = True
                self._refresh(True)
                self.frames.clear()

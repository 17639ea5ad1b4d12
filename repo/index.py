"""Where each blob lies, in LMDB.  The only module that imports lmdb.

A cache of what the volume directories say, local to this machine; never the only copy of anything.  Key: the first 16 bytes
of the id; value: the location (24 bytes) and an 8-byte keyed tag over both, so that a flipped byte is a miss and never a wrong
answer.  Equal blobs in two volumes are two values of one key.  LMDB keeps no checksums of its pages: an exception from it
(IndexBroken), or a folder that is not to be trusted (index_folder), means begin anew and rebuild.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import lmdb

from snapfs.repo.errors import RepositoryError, StorageError
from snapfs.repo.format.crypto import keyed_hash
from snapfs.repo.index_folder import IndexFolder
from snapfs.repo.model import BlobId, Location, VolumeKind

_VALUE = struct.Struct("<IQQI")
_FIRST = struct.Struct("<I")
_VOLUME = struct.Struct("<BBQ32s")
_COUNT = struct.Struct(">Q")
_NUMBER = struct.Struct(">I")
_SCHEMA = b"snapfs index 1"
_LOSSES, _WHOLE = b"losses", b"whole"
_MAP_SIZES = (1 << 38, 1 << 32, 1 << 28)
KEY = 16

Entry = tuple[BlobId, Location]


class IndexBroken(RepositoryError):
    """The index cannot be used as it is; Repository.synchronise deletes it and rebuilds it from the volumes."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the local index is damaged ({reason}): rebuild it with `snapfs repair index`")


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


class Index:
    """One LMDB environment.  Use from any thread of one process; writers of several processes take turns."""

    def __init__(self, folder: str | None, tag_key: bytes) -> None:
        """`folder` None, or one that cannot be written: a temporary index, gone with close()."""
        self._tag_key = tag_key
        self._folder = IndexFolder(folder)
        self.folder = self._folder.path
        self._opened: list[lmdb.Environment] = []
        """Every environment since the beginning; the last one is in use."""
        try:
            if not self._folder.is_trusted(self._walk):
                raise IndexBroken("not as it was left")
            self._open_env()
        except IndexBroken:
            self.reset()

    # ---- reading -------------------------------------------------------------------------------------------------

    def copies(self, blob: bytes) -> list[Location]:
        """Every known place of a blob, those in usable volumes first.  Raises IndexBroken."""
        key = blob[:KEY]
        with self._broken(), self._env.begin(db=self._blobs) as txn:
            value = txn.get(key)
            if value is None:
                return []
            cursor = txn.cursor()
            cursor.set_key(key)
            values = list(cursor.iternext_dup()) if cursor.count() > 1 else [value]
        found = [loc for v in values if (loc := self._decode(key, v)) is not None]
        if len(found) > 1:
            found.sort(key=lambda loc: not self._is_usable(loc.volume))
        return found

    def get(self, blob: bytes) -> Location | None:
        """A place of the blob in a usable volume.  Raises IndexBroken."""
        key = blob[:KEY]
        value = self._value(key)
        if value is None:
            return None
        location = self._decode(key, value)
        if location is not None and location.volume in self._usable:
            return location
        return next((at for at in self.copies(blob) if self._is_usable(at.volume)), None)

    def holder(self, blob: bytes) -> int | None:
        """The number of a usable volume that has the blob: what deduplication asks, once for every blob there is."""
        key = blob[:KEY]
        value = self._value(key)
        if value is None:
            return None
        number: int = _FIRST.unpack_from(value)[0]
        if number in self._usable and keyed_hash(self._tag_key, key + value[:-8])[:8] == value[-8:]:
            return number
        location = self.get(blob)
        return None if location is None else location.volume

    def volume(self, number: int) -> IndexedVolume:
        """Raises IndexBroken for a number that no volume has."""
        if number not in self._volumes:
            self._load_volumes()
        try:
            return self._volumes[number]
        except KeyError:
            raise IndexBroken(f"no volume {number}") from None

    def volumes(self) -> list[IndexedVolume]:
        self._load_volumes()
        return list(self._volumes.values())

    def entries(self) -> Iterator[tuple[bytes, Location]]:
        """(first 16 bytes of the id, location) of all blobs, in the order of ids."""
        with self._broken(), self._env.begin(db=self._blobs) as txn:
            for key, value in txn.cursor():
                location = self._decode(key, value)
                if location is not None:
                    yield key, location

    def losses(self) -> int:
        """How often volumes became unusable: while this stays, what was known to be there still is."""
        with self._broken(), self._env.begin(db=self._meta) as txn:
            return self._read_losses(txn)

    def is_whole(self, snapshot: bytes) -> bool:
        """Whether every blob of a snapshot is known to be in a usable volume (see note_whole)."""
        with self._broken(), self._env.begin(db=self._meta) as txn:
            return txn.get(_WHOLE + snapshot) == self._whole(snapshot, self._read_losses(txn))

    def count(self) -> int:
        with self._broken(), self._env.begin() as txn:
            return int(txn.stat(self._blobs)["entries"])

    # ---- writing -------------------------------------------------------------------------------------------------

    def add(
        self, name: bytes, kind: VolumeKind, size: int, entries: Iterable[Entry], usable: bool = True
    ) -> int:
        """Record a durable volume and its blobs in one transaction; returns its number.  A volume known by
        that name is replaced."""
        with self._broken(), self._env.begin(write=True) as txn:
            known = {v.name: v for v in self._read_volumes(txn)}
            old = known.get(name)
            number = old.number if old else 1 + max((v.number for v in known.values()), default=0)
            rows = []
            for blob, at in entries:
                key = blob[:KEY]
                packed = _VALUE.pack(
                    number,
                    at.entry | at.frame << 24 | at.sealed << 40,
                    at.frame_offset | at.offset << 32,
                    at.length,
                )
                rows.append((key, packed + keyed_hash(self._tag_key, key + packed)[:8]))
            rows.sort()
            txn.cursor(self._blobs).putmulti(rows, dupdata=True)
            self._put_volume(txn, IndexedVolume(number, name, kind, size, usable))
        self._load_volumes()
        return number

    def note_whole(self, snapshot: bytes, losses: int, instead_of: bytes | None = None) -> None:
        """Remember that every blob of a snapshot was found in a usable volume since losses() said this; forget it of another."""
        with self._broken(), self._env.begin(write=True, db=self._meta) as txn:
            if instead_of is not None:
                txn.delete(_WHOLE + instead_of)
            txn.put(_WHOLE + snapshot, self._whole(snapshot, losses))

    def mark(self, names: Iterable[bytes], usable: bool) -> None:
        """Say of volumes whether new backups may rely on them."""
        wanted = set(names)
        with self._broken(), self._env.begin(write=True) as txn:
            for volume in self._read_volumes(txn):
                if volume.name in wanted:
                    self._put_volume(txn, volume._replace(usable=usable))
        self._load_volumes()

    def reset(self) -> None:
        """Throw everything away and begin empty, in a folder of the next number.

        The old environment is left open: another thread may be reading in it, and LMDB does not survive a close under a reader.
        """
        with self._broken():
            old = self._folder.renew()
        self._open_env()
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        for env in self._opened:
            with contextlib.suppress(lmdb.Error):
                env.close()
        self._opened.clear()
        self._folder.leave()

    # ---- opening -------------------------------------------------------------------------------------------------

    def _open_env(self) -> None:
        path = self._folder.newest()
        for size in _MAP_SIZES:
            try:
                with self._broken():
                    self._env = lmdb.open(
                        path,
                        map_size=size,
                        max_dbs=4,
                        mode=0o600,
                        max_readers=512,
                        meminit=False,
                        readahead=False,
                    )
                self._opened.append(self._env)
                break
            except IndexBroken as error:
                if size == _MAP_SIZES[-1] or not isinstance(error.__cause__, lmdb.MemoryError):
                    raise
        with self._broken(), self._env.begin(write=True) as txn:
            self._meta = self._env.open_db(b"meta", txn=txn)
            self._blobs = self._env.open_db(b"blobs", txn=txn, dupsort=True)
            self._volumes_db = self._env.open_db(b"volumes", txn=txn)
            tagged = _SCHEMA + keyed_hash(self._tag_key, _SCHEMA)[:8]
            found = txn.get(b"schema", db=self._meta)
            if found is None:
                txn.put(b"schema", tagged, db=self._meta)
            elif found != tagged:
                raise IndexBroken("another schema, or another repository's")
        self._load_volumes()

    def _walk(self) -> None:
        """Touch every page that holds a blob.  Raises IndexBroken for more of them than there is room for: pages in a circle."""
        self._open_env()
        info = self._env.info()
        most = (info["last_pgno"] + 1) * self._env.stat()["psize"] // _VALUE.size
        with self._env.begin(db=self._blobs) as txn:
            for number, _ in enumerate(txn.cursor()):
                if number > most:
                    raise IndexBroken("its pages form a circle")

    # ---- inside --------------------------------------------------------------------------------------------------

    def _value(self, key: bytes) -> bytes | None:
        """The first value of a key.  Asked for once a blob: no context manager of ours, which would cost as much again."""
        try:
            with self._env.begin(db=self._blobs) as txn:
                value: bytes | None = txn.get(key)
                return value
        except lmdb.Error as error:
            raise IndexBroken(str(error)) from error

    def _load_volumes(self) -> None:
        with self._broken(), self._env.begin() as txn:
            self._volumes = {v.number: v for v in self._read_volumes(txn)}
        self._usable = frozenset(v.number for v in self._volumes.values() if v.usable)

    def _is_usable(self, number: int) -> bool:
        return number in self._usable or self.volume(number).usable

    def _read_volumes(self, txn: lmdb.Transaction) -> Iterator[IndexedVolume]:
        for key, value in txn.cursor(self._volumes_db):
            key, value = bytes(key), bytes(value)
            if (
                len(value) != _VOLUME.size + 8
                or value[-8:] != keyed_hash(self._tag_key, key + value[:-8])[:8]
            ):
                raise IndexBroken("a volume's record is damaged")
            kind, usable, size, name = _VOLUME.unpack(value[:-8])
            yield IndexedVolume(_NUMBER.unpack(key)[0], name, VolumeKind(kind), size, bool(usable))

    def _put_volume(self, txn: lmdb.Transaction, volume: IndexedVolume) -> None:
        key = _NUMBER.pack(volume.number)
        value = _VOLUME.pack(volume.kind, volume.usable, volume.size, volume.name)
        txn.put(key, value + keyed_hash(self._tag_key, key + value)[:8], db=self._volumes_db)
        if not volume.usable:
            losses = _COUNT.pack(self._read_losses(txn) + 1)
            txn.put(_LOSSES, losses + keyed_hash(self._tag_key, _LOSSES + losses)[:8], db=self._meta)

    def _read_losses(self, txn: lmdb.Transaction) -> int:
        value = txn.get(_LOSSES, db=self._meta)
        if value is None:
            return 0
        losses = value[:-8]
        if len(losses) != _COUNT.size or keyed_hash(self._tag_key, _LOSSES + losses)[:8] != value[-8:]:
            raise IndexBroken("its count of losses is damaged")
        return int(_COUNT.unpack(losses)[0])

    def _whole(self, snapshot: bytes, losses: int) -> bytes:
        return keyed_hash(self._tag_key, _WHOLE + snapshot + _COUNT.pack(losses))[:16]

    def _decode(self, key: bytes, value: bytes) -> Location | None:
        """None if the tag does not fit: a damaged entry is a missing one."""
        packed = value[:-8]
        if len(value) != _VALUE.size + 8 or keyed_hash(self._tag_key, key + packed)[:8] != value[-8:]:
            return None
        volume, first, second, length = _VALUE.unpack(packed)
        return Location(
            volume,
            first & 0xFFFFFF,
            first >> 24 & 0xFFFF,
            second & 0xFFFFFFFF,
            first >> 40,
            second >> 32,
            length,
        )

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        try:
            yield
        except lmdb.DiskError as error:
            raise StorageError(
                f"index in {self.folder}: {error}: free some space or set --cache-dir"
            ) from error
        except (lmdb.Error, OSError) as error:
            if isinstance(error, lmdb.MapFullError) or "No space" in str(error) or "quota" in str(error):
                raise StorageError(
                    f"index in {self.folder}: {error}: free some space or set --cache-dir"
                ) from error
            raise IndexBroken(str(error)) from error

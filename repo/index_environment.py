"""One LMDB environment of an index: look-ups and transactions.  The only module that imports lmdb.

LMDB keeps no checksums of its pages; whatever it says is wrong is IndexBroken, and a full disk is a StorageError.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import lmdb

from snapfs.repo.errors import RepositoryError, StorageError
from snapfs.repo.index_rows import KEY, ROW, IndexedVolume, Rows

_COUNT = struct.Struct(">Q")
_SCHEMA = b"snapfs index 1"
_LOSSES, _WHOLE, _HIGHEST = b"losses", b"whole", b"highest"
_SCANNED, _DELETED = 1 << 20, 1 << 15
"""Rows looked at, and deleted, in one transaction, while volumes are forgotten."""
_MAP_SIZES = (1 << 38, 1 << 32, 1 << 28)


class IndexBroken(RepositoryError):
    """The index cannot be used as it is; Repository.synchronise deletes it and rebuilds it from the volumes."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the local index is damaged ({reason}): rebuild it with `snapfs repair index`")
        self.reason = reason


class Volumes(NamedTuple):
    as_of: int
    """Number of the transaction."""
    volumes: list[IndexedVolume]
    highest: int
    """No volume that was forgotten had a higher number."""


class Environment:
    """Use from any thread of one process; writers of several processes take turns.  Every method may raise IndexBroken."""

    def __init__(self, path: str, rows: Rows, *, durable: bool = True) -> None:
        """Open, and create if need be.  Not `durable`: fast, and nothing is safe before sync()."""
        self._path = path
        self._rows = rows
        for size in _MAP_SIZES:
            try:
                with self._broken():
                    self._env = lmdb.open(
                        path,
                        map_size=size,
                        max_dbs=4,
                        mode=0o600,
                        max_readers=512,
                        meminit=True,  # without it, whatever lay in memory before is written to the disk: names, keys
                        readahead=False,
                        sync=durable,
                    )
                break
            except IndexBroken as error:
                if size == _MAP_SIZES[-1] or not isinstance(error.__cause__, lmdb.MemoryError):
                    raise
        with self._broken(), self._env.begin(write=True) as txn:
            self._meta = self._env.open_db(b"meta", txn=txn)
            self._blobs = self._env.open_db(b"blobs", txn=txn, dupsort=True)
            self._volumes = self._env.open_db(b"volumes", txn=txn)
            tagged = _SCHEMA + rows.tag(_SCHEMA)
            found = txn.get(b"schema", db=self._meta)
            if found is None:
                txn.put(b"schema", tagged, db=self._meta)
                # Every environment counts from elsewhere: what was noted in one before says nothing about this one.
                self._put_count(txn, _LOSSES, secrets.randbits(48))
            elif found != tagged:
                raise IndexBroken("another schema, or another repository's")

    # ---- reading -------------------------------------------------------------------------------------------------

    def first(self, key: bytes) -> bytes | None:
        """The first value of a key.  Asked for once a blob: no context manager of ours, which would cost as much again."""
        try:
            with self._env.begin(db=self._blobs) as txn:
                value: bytes | None = txn.get(key)
                return value
        except lmdb.Error as error:
            raise IndexBroken(str(error)) from error

    def firsts(self, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """(key, first value) of each of these keys that has any."""
        with self._broken(), self._env.begin(db=self._blobs) as txn:
            return list(txn.cursor().getmulti(keys))

    def values(self, key: bytes) -> list[bytes]:
        with self._broken(), self._env.begin(db=self._blobs) as txn:
            cursor = txn.cursor()
            return list(cursor.iternext_dup()) if cursor.set_key(key) else []

    def blobs(self) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every blob, in the order of keys."""
        with self._broken(), self._env.begin(db=self._blobs) as txn:
            yield from txn.cursor()

    def count(self) -> int:
        with self._broken(), self._env.begin() as txn:
            return int(txn.stat(self._blobs)["entries"])

    def most_blobs(self) -> int:
        """As many as its pages have room for, at most."""
        with self._broken():
            return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]) // (ROW - KEY)

    def volumes(self, unless: int) -> Volumes | None:
        """The volumes as of the last transaction; None if it is that of number `unless`."""
        with self._broken(), self._env.begin() as txn:
            return self._read_volumes(txn, txn.id(), unless)

    def losses(self) -> int:
        with self._broken(), self._env.begin() as txn:
            return self._read_count(txn, _LOSSES)

    def is_whole(self, snapshot: bytes) -> bool:
        with self._broken(), self._env.begin() as txn:
            value: bytes | None = txn.get(_WHOLE + snapshot, db=self._meta)
            return value == self._whole(snapshot, self._read_count(txn, _LOSSES))

    # ---- writing -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writing]:
        """A transaction: all of it is durable afterwards, or none if the block raises."""
        with self._broken(), self._env.begin(write=True) as txn:
            yield Writing(self, txn)

    def note_whole(self, snapshot: bytes, losses: int, instead_of: bytes | None) -> None:
        with self._broken(), self._env.begin(write=True, db=self._meta) as txn:
            if instead_of is not None:
                txn.delete(_WHOLE + instead_of)
            txn.put(_WHOLE + snapshot, self._whole(snapshot, losses))

    def forget(self, volumes: set[int]) -> None:
        """Delete the rows of these volumes, then their records.  Others write in between."""
        at: bytes | None = b""
        while at is not None:
            rows, at = self._rows_of(volumes, at)
            if rows:
                with self._broken(), self._env.begin(write=True, db=self._blobs) as txn:
                    for key, value in rows:
                        txn.delete(key, value)
        with self._broken(), self._env.begin(write=True) as txn:
            highest = max(volumes, default=0)
            if highest > self._read_count(txn, _HIGHEST):
                self._put_count(txn, _HIGHEST, highest)
            for number in volumes:
                txn.delete(self._rows.number_key(number), db=self._volumes)
            self._put_count(txn, _LOSSES, self._read_count(txn, _LOSSES) + len(volumes))

    def sync(self) -> None:
        with self._broken():
            self._env.sync(True)

    def close(self) -> None:
        with contextlib.suppress(lmdb.Error):
            self._env.close()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _rows_of(self, volumes: set[int], start: bytes) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Some rows of these volumes from a key on, and the key to go on from (None: no more).

        They are deleted by key and value afterwards: after a delete among equal keys, LMDB's cursors are not where they say."""
        rows: list[tuple[bytes, bytes]] = []
        number_in = self._rows.number_in
        with self._broken(), self._env.begin(db=self._blobs) as txn:
            cursor = txn.cursor()
            if cursor.set_range(start):
                for seen, (key, value) in enumerate(cursor):
                    if (seen >= _SCANNED or len(rows) >= _DELETED) and key != start:
                        return rows, key
                    if number_in(value) in volumes:
                        rows.append((key, value))
        return rows, None

    def _read_volumes(self, txn: Any, last: int, unless: int) -> Volumes | None:
        if last == unless:
            return None
        found = []
        for key, value in txn.cursor(self._volumes):
            volume = self._rows.indexed(key, value)
            if volume is None:
                raise IndexBroken("a volume's record is damaged")
            found.append(volume)
        return Volumes(last, found, self._read_count(txn, _HIGHEST))

    def _put_blobs(self, txn: Any, rows: Iterable[bytes]) -> None:
        txn.cursor(self._blobs).putmulti([(row[:KEY], row[KEY:]) for row in rows], dupdata=True)

    def _put_volumes(self, txn: Any, volumes: list[IndexedVolume]) -> None:
        for volume in volumes:
            txn.put(*self._rows.volume(volume), db=self._volumes)
        if lost := sum(not volume.usable for volume in volumes):
            self._put_count(txn, _LOSSES, self._read_count(txn, _LOSSES) + lost)

    def _put_count(self, txn: Any, name: bytes, value: int) -> None:
        count = _COUNT.pack(value)
        txn.put(name, count + self._rows.tag(name + count), db=self._meta)

    def _read_count(self, txn: Any, name: bytes) -> int:
        value = txn.get(name, db=self._meta)
        if value is None:
            return 0
        count = value[: _COUNT.size]
        if value != count + self._rows.tag(name + count):
            raise IndexBroken("one of its counts is damaged")
        return int(_COUNT.unpack(count)[0])

    def _whole(self, snapshot: bytes, losses: int) -> bytes:
        return self._rows.tag(_WHOLE + snapshot + _COUNT.pack(losses), 16)

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        with broken(self._path):
            yield


class Writing:
    """What can be done in a transaction."""

    def __init__(self, environment: Environment, txn: Any) -> None:
        self._environment = environment
        self._txn = txn
        self.number: int = txn.id()
        """Of this transaction, if it changes anything; the one before it has the number before."""

    def volumes(self, unless: int) -> Volumes | None:
        """As Environment.volumes: what was there before this transaction."""
        return self._environment._read_volumes(self._txn, self.number - 1, unless)

    def put_blobs(self, rows: Iterable[bytes]) -> None:
        """Rows in ascending order."""
        self._environment._put_blobs(self._txn, rows)

    def put_volumes(self, volumes: list[IndexedVolume]) -> None:
        """Those that are not usable are counted as losses."""
        self._environment._put_volumes(self._txn, volumes)


@contextlib.contextmanager
def broken(place: str) -> Iterator[None]:
    """Errors of LMDB and of the system as IndexBroken, or StorageError where there is no room at `place`."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        full = isinstance(error, (lmdb.DiskError, lmdb.MapFullError))
        if full or "No space" in str(error) or "quota" in str(error):
            raise StorageError(
                f"index in {place}: {error}: free some space or set --cache-dir", errno.ENOSPC
            ) from error
        raise IndexBroken(str(error)) from error

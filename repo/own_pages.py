"""What a machine that can only back up keeps of its own last snapshots: their records, and the pages of their trees.

It cannot read them from the repository, and without them it would have to read every file each time.  A cache: where it is gone
or damaged, all files are read again.  Sealed with a key of this machine's bundle; each page has a key of its own, derived from
its id, and an id belongs to one plaintext, so that the one nonce never meets two.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from typing import Any

from snapfs.repo.blobs import BlobReader
from snapfs.repo.errors import BlobMissing, RepositoryError
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.crypto import AESGCM, InvalidTag, hkdf, keyed_hash, wipe
from snapfs.repo.keys import Keys
from snapfs.repo.model import BlobId, Kind, Node
from snapfs.repo.state import State, StoredSnapshot

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS page (id BLOB PRIMARY KEY, mark INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS snapshot (paths BLOB, complete INTEGER, id BLOB, data BLOB, PRIMARY KEY (paths, complete));
    CREATE TABLE IF NOT EXISTS swept (pages INTEGER);
"""
_KINDS = frozenset((Kind.DIRECTORY, Kind.LIST, Kind.HOLES))
_BATCH = 500
_NONCE = bytes(12)
_TIMEOUT = 5.0
"""Seconds to wait for another backup of this machine."""
_LEAST = 1000
"""Pages that may be there before any are swept."""


class OwnPages(BlobReader):
    """Reads pages as a BlobReader does, from what was kept here.  For one thread."""

    def __init__(self, folder: str | None, keys: Keys) -> None:
        """`folder` None, or one that cannot be written: nothing is kept, and nothing found."""
        self._keys = keys.blob_keys
        self._snapshot_id = keys.snapshot_id
        self._client, self._host = keys.client, keys.host
        self._secret = keys.pages
        self._waiting: dict[BlobId, bytes] = {}
        self._path = os.path.join(folder, "pages") if folder is not None else None
        self._base: sqlite3.Connection | None = None
        if self._path is not None:
            self._open(self._path)

    def _open(self, path: str) -> None:
        for _ in range(2):
            try:
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
                base = sqlite3.connect(path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False)
            except (OSError, sqlite3.Error):
                return
            try:
                base.execute("PRAGMA journal_mode = WAL")
                base.execute("PRAGMA synchronous = NORMAL")
                base.executescript(_SCHEMA)
                self._base = base
                return
            except sqlite3.DatabaseError:  # damaged: begun anew, once
                base.close()
                for name in (path, path + "-wal", path + "-shm"):
                    with contextlib.suppress(OSError):
                        os.unlink(name)

    def close(self) -> None:
        if self._base is not None:
            with contextlib.suppress(sqlite3.Error):
                self._base.close()
            self._base = None
        wipe(self._secret)

    # ---- reading -------------------------------------------------------------------------------------------------

    def get(self, blob: BlobId, kind: Kind) -> bytes:
        """The plaintext of a page.  Raises BlobMissing, also for one that is damaged."""
        row = self._row("SELECT data FROM page WHERE id = ?", blob)
        data = self._waiting.get(blob) or (None if row is None else self._unsealed(blob, row[0]))
        if data is None or keyed_hash(self._keys[kind], data) != blob:
            raise BlobMissing(blob)
        return data

    def cached(self, blob: BlobId, kind: Kind) -> bytes | None:
        return None

    def is_open(self, blob: BlobId) -> bool:
        return False

    def earlier(self, paths: Sequence[bytes]) -> State:
        """The last snapshot of these paths, and the last checkpoint, as a State that has no others."""
        state = State()
        for complete, kept in ((1, state.snapshots), (0, state.checkpoints)):
            row = self._row(
                "SELECT id, data FROM snapshot WHERE paths = ? AND complete = ?", self._tag(paths), complete
            )
            record = self._unsealed(row[0], row[1]) if row is not None else None
            if row is None or record is None or self._snapshot_id(record) != row[0]:
                continue
            with contextlib.suppress(RepositoryError):
                snapshot = records.decode_snapshot(record, "own snapshot")
                if snapshot.complete == bool(complete) and snapshot.host == self._host:
                    kept.append(StoredSnapshot(row[0], snapshot, snapshot.tags, self._client))
                    state.made[row[0]] = (
                        1 - complete,
                        0,
                    )  # a complete one took the checkpoints before it away
        return state

    # ---- keeping -------------------------------------------------------------------------------------------------

    def keep(self, kind: Kind, blob: BlobId, data: bytes | memoryview) -> None:
        """Of a page that is in the snapshot being made."""
        if kind in _KINDS and self._base is not None:
            self._waiting[blob] = bytes(data)
            if len(self._waiting) >= _BATCH:
                self._flush()

    def keep_snapshot(self, stored: StoredSnapshot) -> None:
        """All its pages were kept, or are there from before.  What none of the last snapshots needs goes, now and then."""
        self._flush()
        record, snapshot = records.encode(stored.record), stored.record
        tag = self._tag(snapshot.paths)
        row = (tag, int(snapshot.complete), stored.id, self._sealed(stored.id, record))
        self._do("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?)", row)
        if snapshot.complete:
            self._do("DELETE FROM snapshot WHERE paths = ? AND complete = 0", (tag,))
            there, swept = (
                self._row("SELECT count(*), 0 FROM page"),
                self._row("SELECT max(pages), 0 FROM swept"),
            )
            if there is not None and swept is not None and int(there[0]) > 2 * int(swept[0] or 0) + _LEAST:
                self._sweep()

    def _flush(self) -> None:
        rows = [(blob, self._sealed(blob, data)) for blob, data in self._waiting.items()]
        self._waiting.clear()
        if self._base is None or not rows:
            return
        try:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("INSERT OR REPLACE INTO page VALUES (?, 0, ?)", rows)
            self._base.execute("COMMIT")
        except sqlite3.Error:  # a full disk, or another backup that takes long: then the next one reads more
            self.close()

    def _sweep(self) -> None:
        """Mark what is needed, remove the rest: with as little memory as a tree is deep."""
        try:
            rows = (
                [] if self._base is None else self._base.execute("SELECT id, data FROM snapshot").fetchall()
            )
            self._do("BEGIN IMMEDIATE")
            self._do("UPDATE page SET mark = 0 WHERE mark <> 0")
            for name, data in rows:
                record = self._unsealed(name, data)
                if record is not None:
                    self._mark_node(records.decode_snapshot(record, "own snapshot").root)
            self._do("DELETE FROM page WHERE mark = 0")
            self._do("DELETE FROM swept")
            self._do("INSERT INTO swept SELECT count(*) FROM page")
            self._do("COMMIT")
        except (RepositoryError, sqlite3.Error):  # what is missing will be read again; nothing is removed
            self._do("ROLLBACK")

    def _mark_node(self, node: Node) -> None:
        waiting = _pages(node)
        while waiting:
            kind, blob = waiting.pop()
            if self._base is None or not self._do(
                "UPDATE page SET mark = 1 WHERE id = ? AND mark = 0", (blob,)
            ):
                continue
            page = records.decode_page(self.get(blob, kind), "own page")
            if page.level:
                waiting += [(kind, BlobId(records.decode_branch(raw, "own page").id)) for raw in page.entries]
            elif kind is Kind.DIRECTORY:
                for child in records.decode_nodes(page.entries, "own page"):
                    waiting += _pages(child)

    # ---- the file ------------------------------------------------------------------------------------------------

    def _row(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        if self._base is None:
            return None
        try:
            return self._base.execute(sql, values).fetchone()  # type: ignore[no-any-return]
        except sqlite3.Error:
            return None

    def _do(self, sql: str, values: Sequence[object] = ()) -> int:
        """How many rows it changed."""
        if self._base is None:
            return 0
        try:
            return self._base.execute(sql, values).rowcount
        except sqlite3.Error:
            self.close()
            return 0

    def _tag(self, paths: Sequence[bytes]) -> bytes:
        return keyed_hash(self._secret, records.encode(sorted(set(paths))))

    def _sealed(self, name: bytes, data: bytes) -> bytes:
        return AESGCM(hkdf(self._secret, name, L.OWN_PAGE_LABEL)).encrypt(_NONCE, data, None)

    def _unsealed(self, name: bytes, data: object) -> bytes | None:
        if not isinstance(data, bytes):
            return None
        try:
            return AESGCM(hkdf(self._secret, name, L.OWN_PAGE_LABEL)).decrypt(_NONCE, data, None)
        except (InvalidTag, ValueError):
            return None


def _pages(node: Node) -> list[tuple[Kind, BlobId]]:
    """The root pages that a node names."""
    found = []
    if node.root is not None:
        found.append((Kind.DIRECTORY if node.is_dir else Kind.LIST, BlobId(node.root)))
    if node.holes is not None and node.holes.root is not None:
        found.append((Kind.HOLES, BlobId(node.holes.root)))
    return found

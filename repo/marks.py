"""Remembering much in little memory: bits for blobs, and a table of first comers that spills to disk.

Entry numbers of the index make a mark one bit a blob; what has no such number (hard-link groups, paths) goes to a temporary
database with a small fixed cache.
"""

from __future__ import annotations

import sqlite3
from array import array

from snapfs.repo.errors import StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.model import Location


class Marks:
    """A set of (volume, number) pairs, one bit each; numbers are small and dense.  Valid as long as the index is not rebuilt."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}

    def add(self, volume: int, number: int) -> bool:
        """Mark; says whether it was not marked before."""
        bits = self._bits.get(volume)
        if bits is None:
            bits = self._bits[volume] = bytearray()
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits) + (byte >> 2)))
        if bits[byte] & bit:
            return False
        bits[byte] |= bit
        return True

    def discard(self, volume: int, number: int) -> None:
        bits = self._bits.get(volume)
        if bits is not None and number >> 3 < len(bits):
            bits[number >> 3] &= ~(1 << (number & 7))

    def has(self, volume: int, number: int) -> bool:
        bits = self._bits.get(volume)
        byte = number >> 3
        return bits is not None and byte < len(bits) and bool(bits[byte] & 1 << (number & 7))

    def add_blob(self, at: Location) -> bool:
        return self.add(at.volume, at.entry)

    def has_blob(self, at: Location) -> bool:
        return self.has(at.volume, at.entry)


class FrameSizes:
    """The plaintext of each frame: four bytes a frame.  Valid as long as the index is not rebuilt."""

    def __init__(self) -> None:
        self._plain: dict[int, array[int]] = {}

    def add(self, at: Location) -> None:
        """One of its blobs."""
        plain = self._plain.get(at.volume)
        if plain is None:
            plain = self._plain[at.volume] = array("I")
        if at.frame >= len(plain):
            plain.frombytes(bytes(plain.itemsize * (at.frame + 1 - len(plain) + (at.frame >> 2))))
        plain[at.frame] = min(plain[at.frame] + at.length, 0xFFFFFFFF)

    def share(self, at: Location) -> int:
        """What falls to a blob of the sealed bytes of its frame, all of whose blobs were added."""
        plain = self._plain.get(at.volume, ())
        # Another process may have built the index anew meanwhile, and found more of a damaged volume.
        whole = plain[at.frame] if at.frame < len(plain) else 0
        return (L.FRAME_HEADER_SIZE + at.sealed) * at.length // max(whole, at.length, 1)


class FirstComers:
    """Who came first under a key.  Kept in a temporary database, gone with close(); use from one thread."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection | None = None

    def first(self, key: bytes, value: bytes = b"") -> bytes | None:
        """The value that came first under this key; None if it is this one.  Raises StorageError."""
        try:
            if self._db is None:
                self._db = _temporary()
            if self._db.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (key, value)).rowcount:
                return None
            row = self._db.execute("SELECT value FROM first WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise StorageError(f"temporary table: {error}: set TMPDIR to a folder with free space") from error
        return bytes(row[0])

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _temporary() -> sqlite3.Connection:
    db = sqlite3.connect("", isolation_level=None)  # "": a file of its own, deleted with the connection
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", "cache_size=-4096"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE first (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
    db.execute("BEGIN")
    return db

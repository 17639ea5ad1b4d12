"""Parity: what can stand in for lost blocks of a volume, without a key (docs/format.md, section 13).

A volume is laid out as 48 columns, one stretch of it after the other; the parity is the XOR of all of them.  Checksums of its
blocks tell which one is damaged; with the parity and the 47 others of its row it can be computed.  So one block of each row may
be lost: single blocks here and there, or as many in a row as a column has.

    header (64) | checksum of each block of the volume, 8 bytes each | one column
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from snapfs.repo.errors import Damaged
from snapfs.repo.format import labels as L
from snapfs.repo.format._parity import checksums, fold

BLOCK = L.PARITY_BLOCK
CHECKSUM = 8
HEADER = 64
_HEADER = struct.Struct("<8sHHIQ32s8s")


class Shape(NamedTuple):
    """Where what is in the parity of a volume of `size` bytes."""

    size: int

    @property
    def blocks(self) -> int:
        """The last one may be shorter: then it counts as if zeros followed."""
        return -(-self.size // BLOCK)

    @property
    def rows(self) -> int:
        """Block n is in row n % rows."""
        return -(-self.blocks // L.PARITY_COLUMNS)

    @property
    def column(self) -> int:
        """Offset of the parity itself."""
        return HEADER + CHECKSUM * self.blocks

    @property
    def length(self) -> int:
        """Of the whole object."""
        return self.column + BLOCK * self.rows


def shape_of(length: int) -> Shape:
    """Of the volume, of whole blocks, whose parity has this length."""
    row = CHECKSUM * L.PARITY_COLUMNS + BLOCK
    rows = -(-(length - HEADER) // row)
    return Shape((length - HEADER - BLOCK * rows) // CHECKSUM * BLOCK)


class Builder:
    """Makes the parity of a volume from its bytes, front to back, in pieces of any length."""

    def __init__(self, size: int) -> None:
        """`size`: of the volume, in bytes; at least 1."""
        self._shape = Shape(size)
        self._column = bytearray(BLOCK * self._shape.rows)
        self._checksums: list[bytes] = []
        self._at = 0
        self._begun = b""
        """The beginning of a block."""

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if self._begun:
            missing = BLOCK - len(self._begun)
            self._begun += view[:missing]
            view = view[missing:]
            if len(self._begun) < BLOCK:
                return
            self._blocks(self._begun)
        whole = len(view) - len(view) % BLOCK
        self._blocks(view[:whole])
        self._begun = bytes(view[whole:])

    def _blocks(self, data: bytes | memoryview) -> None:
        self._checksums.append(checksums(data, BLOCK))
        fold(self._column, self._at % len(self._column), data)
        self._at += len(data)

    def parity(self, name: bytes) -> bytes:
        """The object; `name`: 32 bytes, the SHA-256 of the volume.  Raises ValueError if it was not `size` bytes."""
        if self._at + len(self._begun) != self._shape.size:
            raise ValueError(f"{self._at + len(self._begun)} bytes of {self._shape.size}")
        if self._begun:
            self._blocks(self._begun.ljust(BLOCK, b"\0"))
            self._begun = b""
        return b"".join((encode_header(self._shape.size, name), *self._checksums, self._column))


def encode_header(size: int, name: bytes) -> bytes:
    fields = L.PARITY_MAGIC, L.PARITY_VERSION, L.PARITY_COLUMNS, BLOCK, size, name
    return _HEADER.pack(*fields, checksums(_HEADER.pack(*fields, bytes(CHECKSUM)), HEADER))


def decode_header(data: bytes, name: bytes, where: str) -> Shape:
    """Of the parity of the volume of this name.  Raises Damaged, also for what a later version may have written: it can be
    made anew."""
    size = struct.unpack_from("<Q", data, 16)[0] if len(data) >= HEADER else 0
    if not 0 < size <= L.VOLUME_SIZE_LIMIT or data[:HEADER] != encode_header(size, name):
        raise Damaged("no parity of this volume", where)
    return Shape(size)

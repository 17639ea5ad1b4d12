"""Parity in plain Python, written to be read, from docs/format.md: the reference that the compiled loop is held against."""

from __future__ import annotations

import struct
from pathlib import Path

BLOCK, COLUMNS = 4096, 48
_P1, _P2, _P3, _P4, _P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
_ALL = 2**64 - 1


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _ALL


def _round(state: int, lane: int) -> int:
    return _rotated(state + lane * _P2 & _ALL, 31) * _P1 & _ALL


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, of any length (xxHash's doc/xxhash_spec.md)."""
    at = len(data) - len(data) % 32
    if at:
        state = [_P1 + _P2 & _ALL, _P2, 0, -_P1 & _ALL]
        for lanes in struct.iter_unpack("<4Q", data[:at]):
            state = [_round(one, lane) for one, lane in zip(state, lanes, strict=True)]
        h = sum(_rotated(one, bits) for one, bits in zip(state, (1, 7, 12, 18), strict=True)) & _ALL
        for one in state:
            h = ((h ^ _round(0, one)) * _P1 + _P4) & _ALL
    else:
        h = _P5
    h = h + len(data) & _ALL
    while at + 8 <= len(data):
        h = (_rotated(h ^ _round(0, int.from_bytes(data[at : at + 8], "little")), 27) * _P1 + _P4) & _ALL
        at += 8
    if at + 4 <= len(data):
        h = (_rotated(h ^ int.from_bytes(data[at : at + 4], "little") * _P1 & _ALL, 23) * _P2 + _P3) & _ALL
        at += 4
    for byte in data[at:]:
        h = _rotated(h ^ byte * _P5 & _ALL, 11) * _P1 & _ALL
    for shift, factor in ((33, _P2), (29, _P3), (32, 1)):
        h = (h ^ h >> shift) * factor & _ALL
    return h


def _checksum(data: bytes) -> bytes:
    return xxh64(data).to_bytes(8, "little")


def _xor(a: bytes, b: bytes) -> bytes:
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")


def _blocks(volume: bytes) -> list[bytes]:
    return [volume[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(volume), BLOCK)]


def parity(volume: bytes, name: bytes) -> bytes:
    """The whole object."""
    blocks = _blocks(volume)
    rows = -(-len(blocks) // COLUMNS)
    column = [bytes(BLOCK)] * rows
    for number, block in enumerate(blocks):
        column[number % rows] = _xor(column[number % rows], block)
    head = b"parity\r\n" + struct.pack("<HHIQ", 1, COLUMNS, BLOCK, len(volume)) + name
    return b"".join((head, _checksum(head + bytes(8)), *map(_checksum, blocks), *column))


def mended(damaged: bytes, parity: bytes) -> bytes:
    """A volume, where not more than one block of a row is damaged, and nothing of its parity.  What is missing at the end is
    damaged, too."""
    (size,) = struct.unpack_from("<Q", parity, 16)
    count = -(-size // BLOCK)
    rows = -(-count // COLUMNS)
    sums = [parity[at : at + 8] for at in range(64, 64 + 8 * count, 8)]
    blocks = _blocks(damaged.ljust(size, b"\0")[:size])
    for number, block in enumerate(blocks):
        if _checksum(block) != sums[number]:
            row = number % rows
            at = 64 + 8 * count + BLOCK * row
            whole = parity[at : at + BLOCK]
            for other in range(row, count, rows):
                if other != number:
                    whole = _xor(whole, blocks[other])
            blocks[number] = whole
    return b"".join(blocks)[:size]


def mend(volume: Path) -> None:
    """What anybody can do with no key: write a volume of a repository anew with the help of its parity."""
    name = volume.name
    parity_file = volume.parents[2] / "parity" / name[:2] / name
    volume.write_bytes(mended(volume.read_bytes(), parity_file.read_bytes()))

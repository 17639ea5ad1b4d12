"""Which files of which snapshots can be read, by anyone who knows what is in them: exactly right, or not at all."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Mapping
from pathlib import Path

from snapfs.repo.errors import Damaged, SnapshotNotFound
from snapfs.repo.repository import Repository

Truth = Mapping[bytes, bytes]
"""Absolute path -> content."""
Readable = set[tuple[bytes, bytes]]
"""(id of a snapshot, path)."""


def contents_of(folder: Path) -> dict[bytes, bytes]:
    return {os.fsencode(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def readable(repository: Repository, truth: Truth) -> Readable:
    """Asserts that no read gives anything but the truth."""
    found: Readable = set()
    for snapshot in repository.snapshots():
        for path, data in truth.items():
            with contextlib.suppress(Damaged, SnapshotNotFound):
                node = repository.trees.resolve(snapshot.record.root, path)
                got = repository.contents.read(node, 0, len(data) + 1)
                assert got == data, f"{path!r}: wrong bytes"
                found.add((snapshot.id, path))
    return found


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit >> 3] ^= 1 << (bit & 7)
    path.write_bytes(data)


def harm(path: Path, chance: random.Random) -> str:
    """Damage a file in one of the ways disks do; says which."""
    data = bytearray(path.read_bytes())
    what = chance.choice(("bit", "bits", "sector", "zeros", "cut", "longer"))
    at = chance.randrange(len(data))
    match what:
        case "bit":
            data[at] ^= 1 << chance.randrange(8)
        case "bits":
            for _ in range(3):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case "sector":
            at &= ~511
            data[at : at + 512] = chance.randbytes(len(data[at : at + 512]))
        case "zeros":
            at &= ~4095
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        case "cut":
            del data[at:]
        case "longer":
            data += chance.randbytes(1 + at)
    path.write_bytes(data)
    return f"{what} at {at}"

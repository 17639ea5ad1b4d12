"""Holes and preallocated space: what lseek and FIEMAP tell, kept apart in the map, given back by a restore."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs.repo.backup.holes import readable_as_zeros, unallocated

MiB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> int:
    """Data, hole, preallocated, hole, data: on ext4 SEEK_HOLE calls the three in the middle one hole."""
    fd = os.open(tmp_path / "image", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 40 * MiB)
    os.pwrite(fd, b"x" * MiB, 0)
    os.pwrite(fd, b"y" * MiB, 39 * MiB)
    os.posix_fallocate(fd, 10 * MiB, 8 * MiB)
    os.fsync(fd)
    return fd


def test_preallocated_space_is_zeros_but_no_hole(image: int) -> None:
    zeros, holes = list(readable_as_zeros(image, 40 * MiB)), list(unallocated(image, 40 * MiB))
    allocated = os.fstat(image).st_blocks * 512
    assert sum(length for _, length in holes) == 40 * MiB - allocated
    assert all(
        any(at <= offset and offset + length <= at + size for at, size in zeros) for offset, length in holes
    )
    assert holes == sorted(holes)
    assert not any(offset < 18 * MiB and offset + length > 10 * MiB for offset, length in holes)


def test_dense_file_has_neither(tmp_path: Path) -> None:
    (tmp_path / "dense").write_bytes(b"z" * MiB)
    fd = os.open(tmp_path / "dense", os.O_RDONLY)
    assert list(readable_as_zeros(fd, MiB)) == list(unallocated(fd, MiB)) == []
    os.close(fd)

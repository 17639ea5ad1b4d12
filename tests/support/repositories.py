"""Small repositories, made quickly: a cheap key derivation, small volumes, index and state in the same temporary folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.errors import SnapshotNotFound
from snapfs.repo.format.keyslot import Cost
from snapfs.repo.model import KiB, MiB
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.undelete import undelete

PASSWORD = b"correct horse"
CHEAP = Cost(64, 1, 1)


def create(
    folder: Path, *, volume_size: int = 8 * MiB, chunks: tuple[int, int, int] = (64 * KiB, 256 * KiB, MiB),
    parity: bool = False,
) -> None:  # fmt: skip
    """An empty repository in folder/repository."""
    Repository.create(
        str(folder / "repository"),
        PASSWORD,
        cost=CHEAP,
        volume_size=volume_size,
        chunks=chunks,
        parity=parity,
    )


def open_(folder: Path, **options: Any) -> Repository:
    """The repository in folder/repository, its index in folder/cache."""
    return Repository.open(
        str(folder / "repository"),
        PASSWORD,
        cache_dir=str(folder / "cache"),
        state_dir=str(folder / "state"),
        **options,
    )


def snapshot(folder: Path, *paths: str | Path, **options: Any) -> StoredSnapshot:
    """Back up paths into the repository in folder/repository."""
    options = {"host": b"host", "user": b"user", **options}
    with open_(folder) as repository:
        result = backup(repository, BackupOptions(tuple(os.fsencode(path) for path in paths), **options))
    assert result.snapshot is not None
    return result.snapshot


def revive(repository: Repository, ids: list[bytes]) -> list[StoredSnapshot]:
    """Bring forgotten snapshots back, of these; returns them.  Raises SnapshotNotFound if anything is gone."""
    chosen = [snapshot for snapshot in repository.events.load().forgotten_snapshots if snapshot.id in ids]
    if not undelete(repository, chosen).ok:
        raise SnapshotNotFound("prune has removed what it needs")
    return chosen

"""One repository and one source folder, for tests of the engine: back up, and read back every byte of what was stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions, BackupResult
from snapfs.repo.errors import SnapfsError
from snapfs.repo.model import KiB
from snapfs.repo.progress import Progress
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from support import repositories, same
from support.trees import Tree, make

CHUNKS = (16 * KiB, 64 * KiB, 256 * KiB)


class Watch(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.items: dict[bytes, str] = {}
        self.errors: list[SnapfsError] = []
        self.notices: list[str] = []

    def item(self, path: bytes, action: str, size: int = 0) -> None:
        self.items[path] = action

    def error(self, error: SnapfsError) -> None:
        self.errors.append(error)

    def notice(self, text: str) -> None:
        self.notices.append(text)


class Desk:
    """`folder` holds repository, cache and state; `source` is what is backed up unless other paths are named."""

    def __init__(self, folder: Path, tree: Tree | None = None, *, volume_size: int = 1024 * KiB) -> None:
        self.folder = folder
        self.source = make(folder / "source", tree or {})
        repositories.create(folder, volume_size=volume_size, chunks=CHUNKS)

    def open(self, **options: Any) -> Repository:
        return repositories.open_(self.folder, **options)

    def backup(self, *paths: Path, progress: Progress | None = None, **options: Any) -> BackupResult:
        options = {"host": b"host", "user": b"user", **options}
        named = () if "stdin" in options else tuple(os.fsencode(path) for path in paths or (self.source,))
        with self.open(progress=progress or Watch()) as repository:
            return backup(repository, BackupOptions(named, **options), progress or Watch())

    def snapshot(self, *paths: Path, **options: Any) -> StoredSnapshot:
        stored = self.backup(*paths, **options).snapshot
        assert stored is not None
        return stored

    def read(self, snapshot: StoredSnapshot, path: Path | None = None) -> same.Tree:
        """What the snapshot has at a path (the source), every byte of it."""
        with self.open() as repository:
            node = repository.trees.resolve(snapshot.record.root, os.fsencode(path or self.source))
            return same.in_snapshot(repository, node)

    def differences(self, snapshot: StoredSnapshot) -> list[str]:
        """Between the source as it is now and the snapshot."""
        return same.differences(same.on_disk(self.source), self.read(snapshot))

    def volumes(self, kind: str) -> dict[str, Path]:
        """Name and path of each volume; `kind`: data or trees."""
        return {path.name: path for path in (self.folder / "repository" / kind).glob("??/*")}

"""Storages that do not obey everybody, as folders: one that takes objects and lets none go, one that keeps what it is told to
remove.  They stand for a server with a policy, so what a client leaves in tmp/ and locks/ is not their business."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from snapfs.repo.errors import StorageError
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject

_OWN = ("tmp/", "locks/")


class AppendOnly(LocalStorage):
    """Refuses to remove, move or overwrite an object."""

    def create(self) -> LocalObject:
        return _Object(self)

    def remove_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.will_change(name, "remove")
            super().remove_all((name,))

    def set_aside(self, name: str) -> str:
        self.will_change(name, "move")
        return super().set_aside(name)

    def will_change(self, name: str, how: str) -> None:
        if not name.startswith(_OWN) and os.path.lexists(self.path(name)):
            raise StorageError(f"repository: cannot {how} {name}: Operation not permitted", errno.EPERM)


class _Object(LocalObject):
    def __init__(self, storage: AppendOnly) -> None:
        super().__init__(storage)
        self._of = storage

    def publish(self, name: str) -> None:
        self._of.will_change(name, "overwrite")
        super().publish(name)


class Versioned(AppendOnly):
    """Does what it is told, and keeps the version that there was, as object lock does; recover() is what its owner can do."""

    def will_change(self, name: str, how: str) -> None:
        kept, path = _versions(self.place) / name, self.path(name)
        if not name.startswith(_OWN) and os.path.lexists(path) and not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, kept)


def names(place: Path) -> set[str]:
    """Of all objects."""
    found = (str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(_OWN)}


def recover(place: Path, before: set[str]) -> None:
    """The objects of these names as they were before anything was done to them, and no others."""
    for name in names(place) - before:
        (place / name).unlink()
    for name in before:
        kept = _versions(str(place)) / name
        if kept.exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(kept, place / name)


def _versions(place: str) -> Path:
    return Path(place + ".versions")

"""The contract of a place that keeps objects.

An object is written once, becomes visible whole or not at all, and is never changed.

Names are relative paths of ASCII letters, digits, `-`, `.` and `/` ("data/ab/abcd...").  Every failure is a StorageError (or
RepositoryNotFound), never an empty answer: a list that could not be read is not an empty list.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from snapfs.repo.storage.locks import Locks

TRASH = "trash"
"""The folder of what was set aside; made when it is needed."""
NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS)
"""What a file system answers that does not fsync folders: no failure of one."""
_HASH = re.compile("[0-9a-f]{64}")


def hash_in(name: str) -> bytes | None:
    """The 32 bytes in the last part of an object's name; None if it is none of ours: other programs leave files about."""
    text = name.rpartition("/")[2]
    return bytes.fromhex(text) if _HASH.fullmatch(text) else None


class NewObject(Protocol):
    """An object that is being written and that nobody else sees yet.  Leave it by publish() or discard()."""

    def write(self, *parts: bytes) -> None:
        """Append."""

    def read(self, offset: int, length: int) -> bytes:
        """Read back what was written: fewer bytes only at the end."""

    def sync(self) -> None:
        """Make the bytes durable.  A failure condemns this object: write it again elsewhere, never retry."""

    def publish(self, name: str) -> None:
        """Give it its name.  Durable after Storage.sync_names()."""

    def discard(self) -> None:
        """Remove it.  Never raises."""


class Storage(Protocol):
    place: str
    """Where this is, for people."""
    identity: bytes
    """What tells this place from a copy of it elsewhere; keys the index and the client state."""
    locks: Locks
    """Who writes here just now."""

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        """(name, size) of every object below `folder` ("data"), names whole; an absent folder has none.  Raises
        RepositoryNotFound if the repository is gone from its place."""

    def stamp(self, folder: str) -> object:
        """A value that changes when names in a folder do: cheap enough to ask for at every turn.  None if unknown."""

    def size(self, name: str) -> int | None:
        """Size of an object, or None if it does not exist."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of an object; fewer only at its end.  Raises StorageError (errno ENOENT if it does not exist)."""

    def create(self) -> NewObject: ...

    def write(self, name: str, data: bytes, check: Callable[[bytes], None] = lambda _: None) -> None:
        """As put, but for the durability of its name, which takes sync_names()."""

    def put(self, name: str, data: bytes, check: Callable[[bytes], None] = lambda _: None) -> None:
        """Publish a small object durably: create, write, read back, sync, publish, sync_names.  `check` gets what was read
        back, and raises if it is not as meant: then nothing is published.  Raises Damaged if it is not what was written."""

    def sync_names(self) -> None:
        """Make all names published since the last call durable."""

    def adopt(self, names: Iterable[str]) -> None:
        """Make the names of objects durable that others published: one may have died before his sync_names."""

    def remove(self, name: str) -> None:
        """Remove an object durably; an absent one is no error."""

    def remove_all(self, names: Iterable[str]) -> None:
        """The same for many.  If it raises, some of them may be gone."""

    def let_go(self, names: Iterable[str]) -> None:
        """Hold no descriptor of these objects any more: their room is free only then.  Never raises."""

    def set_aside(self, name: str) -> str:
        """Move an object to TRASH, where no reader looks, durably; returns its name there."""

    def free(self) -> int | None:
        """Bytes that can still be written, about; None: not known.  Never raises."""

    def sweep(self) -> None:
        """Remove what dead writers left unpublished.  Never raises."""

    def close(self) -> None: ...

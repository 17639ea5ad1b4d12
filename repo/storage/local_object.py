"""An object on its way into a local folder: a locked file in tmp/, until it is durable and gets its name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from snapfs.repo.errors import StorageError

if TYPE_CHECKING:
    from snapfs.repo.storage.local import LocalStorage


def reason(error: OSError) -> str:
    """What to tell people of it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: free some space, then run this again; nothing that was backed up before is lost"
    return error.strerror or str(error)


@contextlib.contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Raise StorageError for an OSError in the block; `what` could not be done."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"repository: cannot {what}: {reason(error)}", error.errno) from error


class LocalObject:
    """storage.base.NewObject as a file in tmp/."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage = storage
        self._name = f"tmp/{storage.locks.machine}-{secrets.token_hex(8)}"
        self._failed = False
        with failing_as(f"create {self._name}"):
            while True:
                try:
                    self._fd = self._make()
                except FileNotFoundError:  # some ways of copying leave empty folders behind
                    os.makedirs(storage.path("tmp"), 0o700, exist_ok=True)  # another thread may be as far
                    self._fd = self._make()
                # Some network file systems have no flock: there, what dead writers leave stays.
                with contextlib.suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._fd).st_nlink:
                    break
                os.close(self._fd)  # another process swept it before it was locked

    def _make(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._storage.path(self._name), flags, 0o600)

    def write(self, *parts: bytes) -> None:
        with self._condemning("write"):
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(self._fd, view) :]

    def read(self, offset: int, length: int) -> bytes:
        with failing_as(f"read back {self._name}"):
            return pread(self._fd, offset, length)

    def sync(self) -> None:
        with self._condemning("fsync"):
            os.fsync(self._fd)

    def publish(self, name: str) -> None:
        with self._condemning("publish"):
            target = self._storage.path(name)
            folder = os.path.dirname(target)
            if not os.path.isdir(folder):
                os.makedirs(folder, 0o700, exist_ok=True)
            # Objects are named by their content, so whatever has that name already is this object.
            os.rename(self._storage.path(self._name), target)
            self._storage.unsynced |= self._storage.folders_of(name)
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._storage.path(self._name))
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def _condemning(self, what: str) -> Iterator[None]:
        """A file that failed once stays failed: after a failed fsync the kernel may have dropped pages it
        then calls clean."""
        if self._failed or self._fd < 0:
            raise StorageError(f"repository: {self._name} failed before and is not used again")
        try:
            with failing_as(f"{what} {self._name}"):
                yield
        except StorageError:
            self._failed = True
            raise


def pread(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on, fewer only at the end."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    got = len(data)
    while got < length and (data := os.pread(fd, length - got, offset + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts)

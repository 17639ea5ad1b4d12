"""A repository in a local folder.

Writes go to tmp/, are flocked there by their writer (so that a later run can tell a dead writer's leftovers: the kernel
frees the lock), fsynced, and renamed to their place; then the folder is fsynced.  Nothing is ever overwritten or appended to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from snapfs.repo.errors import Damaged, RepositoryNotFound, StorageError
from snapfs.repo.storage.base import NO_FOLDER_FSYNC, TRASH
from snapfs.repo.storage.descriptors import Descriptors
from snapfs.repo.storage.local_object import LocalObject, failing_as, pread, reason
from snapfs.repo.storage.locks import Locks

FOLDERS = ("keys", "events", "data", "trees", "tmp", "locks")
_SWEEP_SECONDS = 7 * 24 * 3600
"""What a machine whose locks may not be seen here left in tmp/ is old enough then, whatever the clocks of both say."""
_DEPTH = 4
"""Folders within one another that are looked into: objects lie in three at most; somebody's own may be as many as he likes."""
_TICK = 2_100_000_000
Notice = Callable[[str], None]


class LocalStorage:
    """storage.base.Storage over a folder.  Made by `open` or `create`."""

    def __init__(self, folder: str, notice: Notice | None = None) -> None:
        self.place = os.path.abspath(folder)
        self.locks = Locks(self.place)
        self.unsynced: set[str] = set()
        self._notice = notice
        self._said_no_dir_fsync = False
        self._descriptors = Descriptors()
        self._syncing = threading.Lock()
        self._condemned: StorageError | None = None
        try:
            info = os.stat(self.place)
            self.real_path = os.fsencode(os.path.realpath(self.place, strict=True))
        except OSError as error:
            raise RepositoryNotFound(
                f"no repository at {self.place}: {reason(error)}; check the path, or make one with `snapfs init`",
                self.place,
            ) from error
        if not stat.S_ISDIR(info.st_mode):
            raise RepositoryNotFound(f"no repository at {self.place}: not a folder", self.place)
        self._was_there = self._is_there()
        # Not st_dev: it changes with every plugging of a removable disk, and the inode tells a copy from
        # the original.
        self.identity = self.real_path + b"\0%d" % info.st_ino

    def path(self, name: str) -> str:
        return f"{self.place}/{name}"

    def folders_of(self, name: str) -> set[str]:
        """All that have to be fsynced before a name is durable: of the folders too it is not known who made them, and whether
        he lived to fsync them."""
        return {self.place, *(self.path(name[:at]) for at, letter in enumerate(name) if letter == "/")}

    def make_folders(self) -> None:
        """Lay out an empty repository."""
        with failing_as(f"create folders in {self.place}"):
            for folder in FOLDERS:
                os.makedirs(self.path(folder), 0o700, exist_ok=True)
        # The folders above may be new too, made by this init or by one that was killed.  What may not be read was made by others.
        folder = self.place
        self.unsynced.add(folder)
        while not os.path.ismount(folder) and os.access(os.path.dirname(folder), os.R_OK):
            folder = os.path.dirname(folder)
            self.unsynced.add(folder)
        self.sync_names()

    def is_empty(self) -> bool:
        with failing_as(f"list {self.place}"):
            return not os.listdir(self.place)

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        try:
            entries = list(os.scandir(self.path(folder)))
        except FileNotFoundError:
            self._must_be_there()
            return
        except OSError as error:
            raise StorageError(f"repository: cannot list {folder}: {reason(error)}", error.errno) from error
        for entry in entries:
            name = f"{folder}/{entry.name}"
            with failing_as(f"list {name}"):
                is_folder = entry.is_dir(follow_symlinks=False)
                try:
                    size = 0 if is_folder else entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue
            if is_folder and name.count("/") < _DEPTH:
                yield from self.list(name)
            elif not is_folder:
                yield name, size

    def _is_there(self) -> bool:
        return any(os.path.lexists(self.path(name)) for name in ("config", "keys"))

    def _must_be_there(self) -> None:
        """An absent folder has nothing in it, but a repository that is gone, with the disk it was on perhaps, is not empty."""
        if self._was_there and not self._is_there():
            raise RepositoryNotFound(
                f"no repository at {self.place} any more: is the disk still there?", self.place
            )

    def stamp(self, folder: str) -> object:
        try:
            info = os.stat(self.path(folder))
        except OSError:
            return None
        # The clock of a file system ticks in milliseconds, that of vfat in two seconds: a folder that changed just now may
        # change again without showing it.
        return (info.st_ino, info.st_mtime_ns) if time.time_ns() - info.st_mtime_ns > _TICK else None

    def size(self, name: str) -> int | None:
        try:
            return os.stat(self.path(name)).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"repository: cannot look up {name}: {reason(error)}", error.errno) from error

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with failing_as(f"read {name}"), self._descriptors.borrowed(name, self.path(name)) as fd:
            return pread(fd, offset, os.fstat(fd).st_size - offset if length is None else length)

    def create(self) -> LocalObject:
        return LocalObject(self)

    def put(self, name: str, data: bytes, check: Callable[[bytes], None] = lambda _: None) -> None:
        self.write(name, data, check)
        self.sync_names()

    def write(self, name: str, data: bytes, check: Callable[[bytes], None] = lambda _: None) -> None:
        new = self.create()
        try:
            new.write(data)
            back = new.read(0, len(data) + 1)
            if back != data:
                raise Damaged(
                    "does not read back as it was written: is the memory of this machine sound?", name
                )
            check(back)
            new.sync()
            new.publish(name)
        finally:
            new.discard()

    def sync_names(self) -> None:
        with self._syncing:  # one who finds nothing left to do must not return before the other's fsync has
            if self._condemned is not None:
                raise StorageError(str(self._condemned), self._condemned.errno)
            try:
                self._sync_names()
            except StorageError as error:
                # The kernel reports a failed fsync once: asked again, it would say that all is well.
                self._condemned = error
                raise

    def _sync_names(self) -> None:
        while self.unsynced:
            folder = self.unsynced.pop()
            with failing_as(f"fsync the folder {folder}"):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                except OSError as error:
                    if error.errno not in NO_FOLDER_FSYNC:
                        raise
                    if self._notice and not self._said_no_dir_fsync:
                        self._said_no_dir_fsync = True
                        self._notice(
                            f"{self.place} cannot fsync folders: a power cut may undo the newest files there"
                        )
                finally:
                    os.close(fd)

    def adopt(self, names: Iterable[str]) -> None:
        for name in names:
            self.unsynced |= self.folders_of(name)
        self.sync_names()

    def remove(self, name: str) -> None:
        self.remove_all((name,))

    def remove_all(self, names: Iterable[str]) -> None:
        names = list(names)
        self.let_go(names)
        for name in names:
            with failing_as(f"remove {name}"):
                try:
                    os.unlink(self.path(name))
                except FileNotFoundError:
                    continue
            self.unsynced.add(os.path.dirname(self.path(name)))
        self.sync_names()

    def let_go(self, names: Iterable[str]) -> None:
        self._descriptors.drop(names)

    def set_aside(self, name: str) -> str:
        target, number = f"{TRASH}/{name}", 0
        with failing_as(f"move {name} to {TRASH}/"):
            while self._is_taken(target):  # by one that was brought back, and is damaged again
                number += 1
                target = f"{TRASH}/{name}.{number}"
            folder = os.path.dirname(target)
            os.makedirs(self.path(folder), 0o700, exist_ok=True)
            self._sync_up(folder)  # where it goes must be there before it goes
            os.rename(self.path(name), self.path(target))
        self.let_go((name,))
        self.unsynced |= {os.path.dirname(self.path(target)), os.path.dirname(self.path(name))}
        self.sync_names()
        return target

    def _is_taken(self, name: str) -> bool:
        """Not os.path.lexists(), to which a failing disk is an absent file: what lies there would be replaced."""
        try:
            os.lstat(self.path(name))
        except FileNotFoundError:
            return False
        return True

    def _sync_up(self, folder: str) -> None:
        """Make a folder's name durable, and those above it."""
        while folder:
            folder = os.path.dirname(folder)
            self.unsynced.add(self.path(folder).rstrip("/"))
        self.sync_names()

    def free(self) -> int | None:
        try:
            found = os.statvfs(self.path(""))
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def sweep(self) -> None:
        self.locks.sweep()
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.path("tmp")):
                with contextlib.suppress(OSError):
                    if not self._may_sweep(entry):
                        continue
                    fd = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        os.unlink(entry.path)
                    finally:
                        os.close(fd)

    def _may_sweep(self, entry: os.DirEntry[str]) -> bool:
        """Whether a free lock proves that its writer is dead: not where locks of other machines may not be seen."""
        return (
            self.locks.sees_all
            or entry.name.startswith(self.locks.machine)
            or entry.stat(follow_symlinks=False).st_mtime < time.time() - _SWEEP_SECONDS
        )

    def close(self) -> None:
        self._descriptors.close()

"""Open directories of the target: names are looked up in descriptors, one component at a time, and no link is ever followed.

A chain of them leads from the target to where entries are being written.  However deep that is, few are open: one that was
closed is opened again as ".." of the one below, and must be the directory it was.  Here too: removing a tree by the same means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from dataclasses import dataclass

from snapfs.repo.errors import TargetError

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_LIMIT = 64
_OWNER = 0o700


def look(name: bytes, above: int) -> os.stat_result | None:
    """What has this name in an open directory; None if nothing has."""
    try:
        return os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return None


def temporary_name() -> bytes:
    return b".snapfs-" + secrets.token_hex(8).encode()


def by_descriptor(fd: int) -> bytes:
    """A path that means what a descriptor was opened on, a link too: for calls that take no descriptor, or none of O_PATH."""
    return b"/proc/self/fd/%d" % fd


def open_directory(name: bytes, above: int) -> tuple[int, os.stat_result]:
    """(descriptor, status as it was) of a directory that is then readable and writable for its owner, if that is who we are."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        found = os.fstat(fd)
        mode = stat.S_IMODE(found.st_mode)
        if os.geteuid() == found.st_uid != 0 and mode & _OWNER != _OWNER:
            os.chmod(by_descriptor(fd), mode | _OWNER)
        return os.open(by_descriptor(fd), DIRECTORY & ~os.O_NOFOLLOW), found
    finally:
        os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


@dataclass(slots=True, eq=False)
class Folder:
    """One directory of the chain."""

    name: bytes
    fd: int | None
    """None: closed for now; or, in a dry run, not there."""
    fresh: bool
    """Made by this run: nobody else's entries are in it."""
    inherits: bool = False
    """It has a default ACL, which every new entry takes on."""
    apply: bool = True
    """Its metadata is to be restored."""
    mode: int | None = None
    """The mode to go back to, where it was changed for access and metadata is not restored."""
    failed: bool = False
    """An entry in it could not be restored."""
    identity: tuple[int, int] = (0, 0)


class Chain:
    """The target (never closed before the end), and the directories down to the current one."""

    def __init__(self, root: Folder) -> None:
        self._folders = [root]
        self._closed = 1
        """Folders 1 .. _closed - 1 are closed."""

    @property
    def top(self) -> Folder:
        return self._folders[-1]

    def __len__(self) -> int:
        return len(self._folders)

    def push(self, folder: Folder) -> None:
        self._folders.append(folder)
        if (
            folder.fd is None
        ):  # a dry run below what is not there: nothing to close, and nothing to get back by
            return
        folder.identity = _identity(folder.fd)
        if len(self._folders) - self._closed > OPEN_LIMIT:
            self._close(self._folders[self._closed])
            self._closed += 1

    def open_parent(self) -> None:
        """Make sure that pop() needs no permission of the current directory: to be called before that gets its own mode."""
        if len(self._folders) < 2:
            return
        child, parent = self._folders[-1], self._folders[-2]
        if parent.fd is not None or child.fd is None:
            return
        try:
            fd = os.open(b"..", DIRECTORY, dir_fd=child.fd)
            if _identity(fd) != parent.identity:
                os.close(fd)
                raise OSError(errno.ESTALE, "it was moved")
        except OSError as error:  # there is no way back up, so no way on
            reason = f"the way back from here is lost: {error.strerror}: run this again with nothing else at work there"
            raise TargetError(child.name, reason) from error
        parent.fd = fd
        self._closed = len(self._folders) - 2

    def pop(self) -> None:
        """Raises TargetError if the way back is lost."""
        self.open_parent()
        self._close(self._folders.pop())

    def reach(self, path: bytes) -> int:
        """A new O_PATH descriptor of a directory at a path below the target, from the nearest open one."""
        names = path.split(b"/") if path else []
        at = 0
        while at < min(len(names), len(self._folders) - 1) and self._folders[at + 1].name == names[at]:
            at += 1
        while (nearest := self._folders[at].fd) is None:
            at -= 1
        fd = os.dup(nearest)
        for name in names[at:]:
            try:
                below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def close(self) -> None:
        """Whatever is still open; modes changed for access go back."""
        for folder in reversed(self._folders):
            if folder.fd is not None and folder.mode is not None:
                with contextlib.suppress(OSError):
                    os.fchmod(folder.fd, folder.mode)
            self._close(folder)

    @staticmethod
    def _close(folder: Folder) -> None:
        if folder.fd is not None:
            os.close(folder.fd)
            folder.fd = None


def remove(name: bytes, above: int) -> int:
    """Remove an entry and all below it; returns how many that were.  Other file systems mounted there are not entered."""
    found = os.stat(name, dir_fd=above, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=above)
        return 1
    removed, trail, device = 0, [(name, _identity(above))], os.fstat(above).st_dev
    here = _enter(name, above, device)
    try:
        while True:
            count, deeper = _empty(here)
            removed += count
            if deeper is not None:
                trail.append((deeper, _identity(here)))
                below = _enter(deeper, here, device)
                os.close(here)
                here = below
                continue
            name, parent = trail.pop()
            if not trail:
                break
            up = os.open(b"..", DIRECTORY, dir_fd=here)
            os.close(here)
            here = up
            if _identity(here) != parent:
                raise OSError(errno.ESTALE, "a directory was moved while it was being removed")
            os.rmdir(name, dir_fd=here)
            removed += 1
    finally:
        os.close(here)
    os.rmdir(name, dir_fd=above)
    return removed + 1


def _is_repository(fd: int) -> bool:
    """Whether an open directory looks like one: these are never removed, whatever stands in their way."""
    try:
        return all(
            stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode) for name in ("keys", "events", "data", "trees")
        )
    except OSError:
        return False


def _enter(name: bytes, above: int, device: int) -> int:
    fd, found = open_directory(name, above)
    if _is_repository(fd):
        os.close(fd)
        raise OSError(errno.EBUSY, "a snapfs repository lies there")
    if found.st_dev != device:
        os.close(fd)
        raise OSError(errno.EBUSY, "another file system is mounted there")
    return fd


def _empty(fd: int) -> tuple[int, bytes | None]:
    """Unlink what is no directory and remove empty ones: (how many, name of the first directory that was not empty)."""
    count = 0
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(name, dir_fd=fd)
            else:
                try:
                    os.rmdir(name, dir_fd=fd)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    return count, name
            count += 1
    return count, None

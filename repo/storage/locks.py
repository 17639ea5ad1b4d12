"""Who writes into a repository just now, and the gate that is shut while volumes are removed (docs/concurrency.md).

A lock is a flock on a file in locks/ that is always empty: the kernel frees it when its process ends, and a full disk has room
for it.  A lease is locked shared while its writer waits at the gate, and exclusively from there on.  Where the file system has no
locks, nobody is taken for dead, and nobody waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from snapfs.repo.errors import RepositoryLocked, StorageError

FOLDER = "locks"
_LEASE = re.compile(r"(\d+)-([0-9a-f]{16})-[0-9a-f]{16}\.lease")
_LOCAL = {
    0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630, 0x4D44, 0x2011BAB0, 0xF2F52010, 0x2FC12FC1, 0x7366746E,
    0x858458F6, 0xCA451A4E,
}  # fmt: skip
"""statfs types of file systems that no other machine can have mounted: ext2-4, xfs, btrfs, tmpfs, overlay, vfat, exfat, f2fs,
zfs, ntfs3, ramfs, bcachefs."""


class Writer(NamedTuple):
    """A lease whose writer is alive, or may be."""

    name: str
    process: int
    here: bool
    """It was taken on this machine."""
    held: bool
    """Its lock is seen.  If not, it may be that of a machine whose locks are not seen here."""
    stamp: int
    """Changes whenever the writer renews it."""


class Lease:
    """A writer's, from when it is made to release()."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._fd = -1
        self._take()

    def renew(self) -> bool:
        """Show that this writer is alive.  False if it was given up for dead: then this is a new lease, and what was there before
        need not be there any more.  Raises StorageError."""
        if self.touch():
            return True
        self._close()
        self._take()
        return False

    def touch(self) -> bool:
        """The same, but False leaves this writer without a lease.  Raises StorageError where nobody can tell."""
        try:
            mine = os.stat(self.path).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(
                f"repository: cannot look at {FOLDER}/: {error.strerror}", error.errno
            ) from error
        if mine:
            with contextlib.suppress(OSError):  # a full disk, say: it is still there
                os.utime(self._fd)
        return mine

    def release(self) -> None:
        """Never raises."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            self._close()

    def _take(self) -> None:
        name = f"{os.getpid()}-{self._locks.machine}-{secrets.token_hex(8)}.lease"
        self.path = self._locks.path(name)
        while True:
            self._fd = self._locks.open(name)
            try:
                _lock(self._fd, fcntl.LOCK_SH)
                with self._locks.passing():
                    _lock(self._fd, fcntl.LOCK_EX)
                if os.fstat(self._fd).st_nlink:
                    return
            except BaseException:
                self.release()
                raise
            self._close()  # somebody swept it before it was locked

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class Locks:
    """The locks of a repository in a folder."""

    def __init__(self, place: str) -> None:
        self._folder = f"{place}/{FOLDER}"
        self._place = place
        self.machine = _machine()

    @cached_property
    def sees_all(self) -> bool:
        """Whether all who can write here are on this machine, so that a free lock means a dead writer."""
        return _is_local(self._place)

    def path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def open(self, name: str) -> int:
        try:
            while True:
                try:
                    return os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                except FileNotFoundError:  # some ways of copying leave empty folders behind
                    os.makedirs(self._folder, 0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"repository: cannot open {FOLDER}/{name}: {error.strerror}", error.errno
            ) from error

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Go through the gate: waits while it is shut."""
        with self._locked("gate", fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """The gate is shut: no writer gets past it."""
        with self._locked("gate", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One prune, or one repair of volumes, at a time.  Raises RepositoryLocked."""
        try:
            with self._locked("prune", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield
        except BlockingIOError:
            raise RepositoryLocked(
                "another prune or repair is at work here: let it finish, then run this again"
            ) from None

    def writers(self, but: Lease | None = None, *, sweeping: bool = False) -> list[Writer]:
        """Those past the gate, while it is shut.  Leases of dead ones are removed.  `but`: one's own; `sweeping`: only that, and
        who waits at the gate counts, too.  Raises StorageError."""
        own = "" if but is None else os.path.basename(but.path)
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"repository: cannot list {FOLDER}: {error.strerror}", error.errno) from error
        local = self.sees_all
        names = sorted(name for name in names if name != own)
        return [writer for name in names if (writer := self._look(name, local, sweeping)) is not None]

    def give_up(self, writer: Writer) -> None:
        """Remove the lease of a writer that is taken for dead."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(writer.name))

    def sweep(self) -> None:
        """Remove the leases of the dead.  Never raises."""
        with contextlib.suppress(StorageError):
            self.writers(sweeping=True)

    def _look(self, name: str, local: bool, sweeping: bool) -> Writer | None:
        match = _LEASE.fullmatch(name)
        if match is None:
            return None
        here = match[2] == self.machine
        path = self.path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"repository: cannot open {FOLDER}/{name}: {error.strerror}", error.errno
            ) from error
        try:
            if not _try(fd, fcntl.LOCK_EX):
                # A sweeper does not ask: its shared lock would make another think that the writer only waits.
                waiting = not sweeping and _try(fd, fcntl.LOCK_SH)
                return None if waiting else Writer(name, int(match[1]), here, True, 0)
            if here and local and _has_locks(fd):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                return None
            return Writer(name, int(match[1]), here, False, os.fstat(fd).st_mtime_ns)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        fd = self.open(name)
        try:
            _lock(fd, how)
            yield
        finally:
            os.close(fd)


def _lock(fd: int, how: int) -> None:
    """Raises BlockingIOError for one that another has, with LOCK_NB.  Where there are no locks, goes on without."""
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise StorageError(f"repository: cannot lock: {error.strerror}", error.errno) from error


def _try(fd: int, how: int) -> bool:
    try:
        _lock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_local(place: str) -> bool:
    """Whether only this machine can have this folder mounted."""
    buffer = ctypes.create_string_buffer(256)
    try:
        if ctypes.CDLL(None).statfs(os.fsencode(place), buffer):
            return False
    except (OSError, AttributeError):
        return False
    kind = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_long))[0]
    return kind & 0xFFFFFFFF in _LOCAL


def _machine() -> str:
    """16 hex digits that tell this machine from others."""
    try:
        with open("/etc/machine-id", "rb") as f:
            known = f.read().strip()
    except OSError:
        known = b""
    return hashlib.sha256(b"snapfs machine " + known + os.fsencode(os.uname().nodename)).hexdigest()[:16]

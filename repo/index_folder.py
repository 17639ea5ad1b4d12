"""The folder of an index on this machine: which environment in it is the newest, who has it open, and whether to trust it.

LMDB keeps no checksums and trusts what it maps: of a page that is not as it was written, the process that touches it can
die.  So every process keeps a locked marker here while it has the index open, and the last one to close it leaves a stamp of
the file.  A marker whose lock the kernel has freed was left by a process that died; a stamp that does not fit, by somebody
who wrote without us.

    open/<pid>-<random>   one marker a process; empty, unless it died of a fault
    stamp                 generation, size and time of the file when it was closed
    00000001/data.mdb     an environment: the one with the highest number counts
    new-<marker>/         one that is being built, by the process of that marker; it gets its number when it is complete
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable

from snapfs.repo.errors import StorageError

_UNFINISHED = "new-"


class IndexFolder:
    """Entered when made; leave() it when the index is closed."""

    def __init__(self, folder: str | None) -> None:
        """`folder` None, or one that cannot be written: a temporary one, gone with leave()."""
        if folder and _usable(folder):
            self.path, self._temporary = folder, False
        else:
            self.path, self._temporary = _make_temporary(), True
        self._died = self._faulted = False
        self._alone = True
        self._sweep()
        self._marker_path = os.path.join(self.path, "open", f"{os.getpid()}-{secrets.token_hex(4)}")
        try:
            self._marker = os.open(self._marker_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"index in {self.path}: {error.strerror}: free some space or set --cache-dir", error.errno
            ) from error
        with contextlib.suppress(OSError):
            fcntl.flock(self._marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A page that LMDB cannot bear ends the process by a signal: the interpreter then writes into the marker.
        self._watching = not faulthandler.is_enabled()
        if self._watching:
            faulthandler.enable(self._marker)

    # ---- environments --------------------------------------------------------------------------------------------

    def newest(self) -> str:
        """The environment in use, or, if there is none yet, the first."""
        return self._environment(self._generation() or 1)

    def renew(self) -> str:
        """Begin an empty environment, which is the newest from now on; returns the one before it, to be removed."""
        old = self._generation()
        os.mkdir(self._environment(old + 1), 0o700)
        return self._environment(old)

    def prepare(self) -> str:
        """An empty folder for an environment that nobody is to see yet: publish() or remove it."""
        path = os.path.join(self.path, _UNFINISHED + os.path.basename(self._marker_path))
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path, 0o700)
        return path

    def publish(self, prepared: str) -> str:
        """Make a prepared environment the newest; returns the one before it, to be removed."""
        while True:
            old = self._generation()
            try:
                os.rename(prepared, self._environment(old + 1))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was quicker
                    raise
            else:
                return self._environment(old)

    def _generation(self) -> int:
        """The number of the newest environment; 0 if there is none."""
        return max((int(name) for name in os.listdir(self.path) if name.isdigit()), default=0)

    def _environment(self, generation: int) -> str:
        return os.path.join(self.path, f"{generation:08d}")

    # ---- trust ---------------------------------------------------------------------------------------------------

    def is_trusted(self, walk: Callable[[], None]) -> bool:
        """Whether the newest environment may be opened.  `walk` is to touch all of it, and runs in a child process, where
        somebody was killed with the index open; one that died by a fault of its own leaves nothing to be trusted, since what
        it did was not what `walk` does.  After a clean end the stamp has to fit: to begin anew costs less than to look at
        every page of every index that is opened."""
        if self._faulted:
            return False
        if self._died:
            return survives(walk)
        return not self._alone or self._is_as_left()

    def _sweep(self) -> None:
        """Find out whether some process died with the index open, of what, and whether no other process has it open now."""
        folder = os.path.join(self.path, "open")
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(os.path.join(self.path, _UNFINISHED + name), ignore_errors=True)
                    self._faulted = self._faulted or os.fstat(fd).st_size > 0
                    os.unlink(os.path.join(folder, name))
                    self._died = True
                except BlockingIOError:
                    self._alone = False
                finally:
                    os.close(fd)

    @property
    def _stamp_path(self) -> str:
        return os.path.join(self.path, "stamp")

    def _stamp(self) -> str:
        st = os.stat(os.path.join(self.newest(), "data.mdb"))
        return f"{self._generation()} {st.st_size} {st.st_mtime_ns}"

    def _is_as_left(self) -> bool:
        try:
            with open(self._stamp_path, "rb") as f:  # bytes: a damaged one need not be text
                return f.read() == self._stamp().encode()
        except FileNotFoundError:  # none yet, or no index
            return True
        except OSError:  # a failing disk says nothing for it
            return False

    # ---- the end -------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The index was closed as it should be."""
        if self._marker >= 0:
            if self._watching:
                faulthandler.disable()
            with contextlib.suppress(OSError):
                with open(self._stamp_path, "w") as f:
                    f.write(self._stamp())
                os.unlink(self._marker_path)
            os.close(self._marker)
            self._marker = -1
        if self._temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def retire(folder: str) -> None:
    """Remove the index in this folder, which has no more use, unless a process has it open."""
    away = f"{folder}.gone"
    shutil.rmtree(away, ignore_errors=True)  # of one that was killed here
    with contextlib.suppress(OSError):  # it is not there, or in use, or cannot be removed: then it stays
        for name in os.listdir(os.path.join(folder, "open")):
            with open(os.path.join(folder, "open", name), "r+b") as marker:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(folder, away)  # at once: who opens it now begins anew
        shutil.rmtree(away, ignore_errors=True)


def survives(walk: Callable[[], None]) -> bool:
    """Whether a child process can do this and live: a broken page can end the process that touches it."""
    child = os.fork()
    if child == 0:
        status = 1
        faulthandler.disable()  # dying here is an answer, not a crash to be reported
        try:
            walk()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _usable(folder: str) -> bool:
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        os.makedirs(os.path.join(folder, "open"), 0o700, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _make_temporary() -> str:
    try:
        folder = tempfile.mkdtemp(prefix="snapfs-index-")
    except OSError as error:
        raise StorageError(
            f"no place for the index: {error.strerror}: set --cache-dir or TMPDIR to a writable folder"
        ) from error
    os.mkdir(os.path.join(folder, "open"))
    return folder

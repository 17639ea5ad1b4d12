"""What can go wrong between the engine and a disk, made to happen at the n-th call.

    die      the process ends on the spot, as with kill -9; a write has put half of its bytes
    cut      a power cut: the process ends, and of what was not fsynced something is lost, by seed (see Disk.cut)
    fail     the call fails with an errno: ENOSPC, EIO, EDQUOT; a write has put half of its bytes
    delay    the call takes a little longer, so that other threads overtake it

A call is a system call that changes something below one folder: create, write, fsync, rename, mkdir, unlink (the names under
which Calls counts them), and "index" before and after a transaction of the index.  The seam is the `os` module, below all of
the storage, so that nothing the engine does in between is left out.  Which call is hit does not depend on chance: counting
again with the same workload and the same n finds the same place, apart from the order of two worker threads.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from snapfs.repo.index import Index
from snapfs.repo.index_environment import broken

KINDS = ("create", "write", "fsync", "rename", "mkdir", "unlink", "index")
KILLED = 137
"""Exit status of a process that died of a fault."""

_os_open, _os_write, _os_fsync, _os_rename = os.open, os.write, os.fsync, os.rename
_os_replace, _os_mkdir, _os_unlink = os.replace, os.mkdir, os.unlink
Do = Callable[[], Any]
Half = Callable[[], Any] | None


class Fault:
    """Base, and the one that does nothing.  `hit` is called in place of the call; `do` makes it, `half` makes half of it."""

    def __init__(self) -> None:
        self.off = threading.Event()
        """The end has come, and what belongs to it is being done: no other thread goes on."""

    def hit(self, kind: str, do: Do, half: Half) -> Any:
        return do()


class Die(Fault):
    """`book`, `page`: what was not durable then is left in a file, for a Disk that goes on from there."""

    def __init__(self, book: Disk | None = None, page: Path | None = None) -> None:
        super().__init__()
        self._book = book
        self._page = page

    def hit(self, kind: str, do: Do, half: Half) -> Any:
        self.off.set()
        if half is not None:
            half()
        if self._book and self._page:
            self._book.save(self._page)
        os._exit(KILLED)


class Cut(Fault):
    def __init__(self, disk: Disk, seed: int) -> None:
        super().__init__()
        self._disk = disk
        self._seed = seed

    def hit(self, kind: str, do: Do, half: Half) -> Any:
        self.off.set()
        if half is not None:
            half()
        self._disk.cut(self._seed)
        os._exit(KILLED)


class Fail(Fault):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def hit(self, kind: str, do: Do, half: Half) -> Any:
        if half is not None:
            half()
        # LMDB's errors are no OSErrors to those who use the index.
        with broken("the index") if kind == "index" else nullcontext():
            raise OSError(self.number, os.strerror(self.number))


class Delay(Fault):
    def __init__(self, seconds: float = 0.05) -> None:
        super().__init__()
        self._seconds = seconds

    def hit(self, kind: str, do: Do, half: Half) -> Any:
        time.sleep(self._seconds)
        return do()


class Calls:
    """Counts the calls below `folder` while installed(), and makes the fault happen at those that `when` picks.

    `when(number, kind)`: the first call has number 1.  `disk`, if given, keeps book of what is durable.
    """

    def __init__(self, folder: Path, when: Callable[[int, str], bool] = lambda number, kind: False, fault: Fault | None = None,
                 disk: Disk | None = None) -> None:  # fmt: skip
        self._folder = os.path.realpath(folder)
        self._when = when
        self._fault = fault or Fault()
        self._disk = disk
        self._lock = threading.RLock()
        self.seen: list[str] = []
        """The kinds of all calls so far."""
        self.hits: list[str] = []

    @contextmanager
    def installed(self) -> Iterator[Calls]:
        with ExitStack() as stack:
            for name, replacement in (
                ("open", self._open), ("write", self._write), ("fsync", self._fsync), ("rename", self._rename),
                ("replace", self._replace), ("mkdir", self._mkdir), ("unlink", self._unlink),
            ):  # fmt: skip
                stack.enter_context(mock.patch.object(os, name, replacement))
            for name in ("add", "add_all", "mark"):
                stack.enter_context(mock.patch.object(Index, name, self._around(getattr(Index, name))))
            yield self

    def stand_still(self) -> None:
        """Once the power is off, or the process killed, no other thread does or says anything, although it lives on until all
        losses are made, or noted."""
        if self._fault.off.is_set():
            time.sleep(60)

    def _call(self, kind: str, do: Do, half: Half = None) -> Any:
        self.stand_still()
        with self._lock:
            self.seen.append(kind)
            hit = self._when(len(self.seen), kind)
            if hit:
                self.hits.append(kind)
        return self._fault.hit(kind, do, half) if hit else do()

    def _here(self, path: Any, dir_fd: int | None = None) -> bool:
        if dir_fd is not None or not isinstance(
            path, str
        ):  # the engine names its own files by str, sources by bytes
            return False
        return os.path.abspath(path).startswith(self._folder + "/")

    def _here_fd(self, fd: int) -> str | None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return path if path.startswith(self._folder) else None

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def do() -> int:
            fd = _os_open(path, flags, mode, dir_fd=dir_fd)
            if self._disk and flags & os.O_CREAT and self._here(path, dir_fd):
                self._disk.wrote(fd)
            return fd

        return self._call("create", do) if flags & os.O_CREAT and self._here(path, dir_fd) else do()

    def _write(self, fd: int, data: Any) -> int:
        if self._here_fd(fd) is None:
            return _os_write(fd, data)

        def do(part: Any = data) -> int:
            if self._disk:
                self._disk.wrote(fd)
            return _os_write(fd, part)

        return self._call("write", do, lambda: do(data[: len(data) // 2]))

    def _fsync(self, fd: int) -> None:
        path = self._here_fd(fd)
        if path is None:
            return _os_fsync(fd)

        def do() -> None:  # without a real one, which would only make the tests slow: Disk keeps the book
            if self._disk:
                self._disk.synced(fd, path)

        return self._call("fsync", do)

    def _rename(self, old: Any, new: Any, **more: Any) -> None:
        self._renaming(_os_rename, old, new, more)

    def _replace(self, old: Any, new: Any, **more: Any) -> None:
        self._renaming(_os_replace, old, new, more)

    def _renaming(self, real: Callable[..., None], old: Any, new: Any, more: dict[str, Any]) -> None:
        if not self._here(new):
            real(old, new, **more)
            return

        def do() -> None:
            real(old, new, **more)
            if self._disk:
                self._disk.named(new)

        self._call("rename", do)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if not self._here(path, dir_fd):
            _os_mkdir(path, mode, dir_fd=dir_fd)
            return

        def do() -> None:
            _os_mkdir(path, mode)
            if self._disk:
                self._disk.named(path)

        self._call("mkdir", do)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        if not self._here(path, dir_fd):
            _os_unlink(path, dir_fd=dir_fd)
            return
        self._call("unlink", lambda: _os_unlink(path))

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def method(index: Index, *args: Any, **more: Any) -> Any:
            self._call("index", lambda: None)
            result = real(index, *args, **more)
            self._call("index", lambda: None)
            return result

        return method


class Disk:
    """Book of what a power cut would take away below `folder`: bytes not fsynced, and names whose folder was not fsynced.

    An fsync of a file makes its bytes durable, not its name; one of a folder makes the names in it durable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._dirty: set[int] = set()
        self._names: dict[str, None] = {}
        self._lock = threading.Lock()

    def save(self, page: Path) -> None:
        with self._lock:
            page.write_text(json.dumps([sorted(self._dirty), list(self._names)]))

    def load(self, page: Path) -> None:
        dirty, names = json.loads(page.read_text())
        self._dirty, self._names = set(dirty), dict.fromkeys(names)

    def wrote(self, fd: int) -> None:
        with self._lock:
            self._dirty.add(os.fstat(fd).st_ino)

    def synced(self, fd: int, path: str) -> None:
        with self._lock:
            self._dirty.discard(os.fstat(fd).st_ino)
            self._names = {name: None for name in self._names if os.path.dirname(name) != path}

    def named(self, path: str) -> None:
        with self._lock:
            if os.path.abspath(path).startswith(self._folder):
                self._names[os.path.abspath(path)] = None

    def cut(self, seed: int) -> None:
        """Lose everything that may be lost (seed 0), or each thing by chance."""
        chance = random.Random(seed)
        with self._lock:
            for name in self._names:
                if seed == 0 or chance.random() < 0.5:
                    if os.path.isdir(name) and not os.path.islink(name):
                        shutil.rmtree(name)
                    elif os.path.exists(name):
                        _os_unlink(name)
            for folder, _, names in os.walk(self._folder):
                for path in (os.path.join(folder, name) for name in names):
                    st = os.stat(path)
                    if st.st_ino in self._dirty and (seed == 0 or chance.random() < 0.5):
                        os.truncate(path, 0 if seed == 0 else chance.randrange(st.st_size + 1))
                        if chance.random() < 0.5:
                            os.truncate(
                                path, st.st_size
                            )  # as some file systems do: the length is there, the bytes are zeros


def each(kinds: tuple[str, ...], number: int) -> Callable[[int, str], bool]:
    """Picks the `number`-th call of these kinds."""
    return _nth(kinds, lambda nth: nth == number)


def since(kinds: tuple[str, ...], number: int) -> Callable[[int, str], bool]:
    """Picks every call of these kinds from the `number`-th on."""
    return _nth(kinds, lambda nth: nth >= number)


def _nth(kinds: tuple[str, ...], wanted: Callable[[int], bool]) -> Callable[[int, str], bool]:
    nth = 0

    def when(_: int, kind: str) -> bool:
        nonlocal nth
        nth += kind in kinds
        return kind in kinds and wanted(nth)

    return when


DISK_ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EDQUOT": errno.EDQUOT}

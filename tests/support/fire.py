"""A mount that can be made to fail from outside, while it is up: a file says where, and is looked at at every turn.

fire = Fire(home); server = fire.start(top); with fire.at("View.read", "KeyError"): ...; fire.hits
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support import mounts

PLACES = (
    "View.lookup", "View.entry", "View.directory", "View.read", "View.xattr", "View.totals", "View.is_lasting", "Directory.run",
    "HeldLinks.shown", "HeldLinks.inode", "HeldLinks.hold", "HeldLinks.forget", "LocalStorage.read", "Index.get", "Index.copies",
)  # fmt: skip
ERRORS = sorted(
    name for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning)
)  # fmt: skip


class Fire:
    def __init__(self, home: Path) -> None:
        self.home = home
        self._where = home / "fire"
        self._hits = home / "hits"

    def start(self, top: Path, **options: Any) -> Any:
        return mounts.start(self.home, top, program="support.fire", **options)

    @contextlib.contextmanager
    def at(self, place: str, error: str) -> Iterator[None]:
        """`error`: an exception's name, or that of an errno: EIO."""
        self._hits.write_bytes(b"")
        aside = self.home / "fire.new"
        aside.write_text(f"{place} {error}")
        aside.rename(self._where)
        try:
            yield
        finally:
            self._where.unlink()

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    @property
    def hits(self) -> int:
        return self._hits.stat().st_size


def serve() -> None:
    """The process that Fire.start starts."""
    import json

    from snapfs.fs import entry, links, operations, view
    from snapfs.repo import index
    from snapfs.repo.storage import local

    home = Path(json.loads(sys.argv[1])[0])
    for place in PLACES:
        owner, method = place.split(".")
        kind = next(vars(m)[owner] for m in (view, entry, links, index, local) if owner in vars(m))
        setattr(kind, method, _inflammable(home, place, getattr(kind, method)))
    assert operations
    os.dup2(
        os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2
    )  # a pipe would be full soon
    mounts.serve()


def _inflammable(home: Path, place: str, real: Callable[..., Any]) -> Callable[..., Any]:
    where, hits = str(home / "fire"), str(home / "hits")

    @functools.wraps(real)
    def method(*args: Any, **more: Any) -> Any:
        wanted = error = ""
        if os.path.exists(where):
            with contextlib.suppress(FileNotFoundError, ValueError), open(where) as f:
                wanted, error = f.read().split(" ")
        if wanted == place:
            fd = os.open(hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, b".")
            os.close(fd)
            _raise(error)
        return real(*args, **more)

    return method


def _raise(name: str) -> None:
    from snapfs.repo.errors import StorageError

    if name in errno.errorcode.values():
        number = getattr(errno, name)
        raise StorageError(f"cannot read it: {os.strerror(number)}", number)
    kind = getattr(builtins, name)
    for args in ((), ("utf-8", b"", 0, 1, "x"), ("", 0, 1, "x"), ("x", [ValueError()])):
        try:
            error = kind(*args)
        except TypeError:
            continue
        raise error
    raise AssertionError(name)

"""What this machine remembers of one repository at one place: its client id, the heads it has seen, the key slot that opened.

In XDG state, not in the cache: losing the cache must not lose the proof that a repository was rolled back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

import msgspec

from snapfs.repo.format.records import Head
from snapfs.repo.system import System


class Remembered(msgspec.Struct, frozen=True):
    client: bytes
    heads: tuple[Head, ...] = ()
    slot: str = ""


class Client:
    """The state file, read at once, rewritten whole.

    Where it cannot be written, this run has an id of its own and forgets it.
    """

    def __init__(self, folder: str | None, system: System) -> None:
        self._path = None if folder is None else os.path.join(folder, "client")
        self.remembered = self._load() or Remembered(system.salt()[:16])

    @property
    def id(self) -> bytes:
        return self.remembered.client

    def remember(self, *, heads: Iterable[Head] | None = None, slot: str | None = None) -> None:
        old = self.remembered
        new = Remembered(
            old.client, old.heads if heads is None else tuple(heads), old.slot if slot is None else slot
        )
        if new != old:
            self.remembered = new
            self._save()

    def _load(self) -> Remembered | None:
        if self._path is None:
            return None
        try:
            with open(self._path, "rb") as f:
                return msgspec.msgpack.decode(f.read(), type=Remembered)
        except (OSError, msgspec.DecodeError):
            return None

    def _save(self) -> None:
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            temporary = f"{self._path}.{os.getpid()}"
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
                f.write(msgspec.msgpack.encode(self.remembered))
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, self._path)
            self._sync_names()

    def _sync_names(self) -> None:
        """The file's folder, that of all repositories, and the one above: at first they are all new."""
        folder = self._path or ""
        for _ in range(3):
            folder = os.path.dirname(folder)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

"""What this machine remembers of one repository at one place: its client id, the heads it has seen, the key slot that opened,
the events whose loss was accepted, the volumes found damaged, when it last looked, the snapshots whose time it doubts, and
whether it was made here.

In XDG state, not in the cache: losing the cache must not lose the proof that a repository was rolled back, nor make a backup
rely on what is known to be damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator

import msgspec

from snapfs.repo.format.records import UNDECODABLE, Head
from snapfs.repo.storage.base import NO_FOLDER_FSYNC
from snapfs.repo.system import System

log = logging.getLogger(__name__)

_MAGIC = b"snapfs state 1\n"
_DIGEST = 32
_LOOK = 3600 * 10**9
"""Ns between two looks that are noted, where nothing else changes: a list of snapshots need not write."""


class LeaseNote(msgspec.Struct, frozen=True, array_like=True):
    """A lease as it was met: `boot` and `uptime` (ns) say when, by the one clock that nobody sets."""

    name: str
    stamp: int
    boot: bytes
    uptime: int


class Remembered(msgspec.Struct, frozen=True):
    client: bytes
    heads: tuple[Head, ...] = ()
    slot: str = ""
    place: bytes = b""
    """The path of the repository, links resolved: a copy put where another was is told from a copy elsewhere."""
    accepted: tuple[bytes, ...] = ()
    """Names of missing events whose loss was accepted."""
    damaged: tuple[bytes, ...] = ()
    """Names of volumes found damaged: no backup relies on them, whatever the index has forgotten."""
    leases: tuple[LeaseNote, ...] = ()
    """Leases without a lock that prune met: when it saw each first as it is."""
    looked: int = 0
    """When the events were last listed (ns since 1970); 0: never, or by a version that did not note it."""
    doubted: tuple[tuple[bytes, int], ...] = ()
    """(id, when it was first seen) of snapshots whose time does not fit that."""
    gaps: tuple[bytes, ...] = ()
    """Names of events that were known, and could not be read at the last look."""
    created: bytes = b""
    """Keys.fingerprint of a repository that this machine made."""


class Client:
    """The state file, read at once, rewritten whole.

    Where it cannot be written, that is said once, and what this run has seen is forgotten.  Where it cannot be read, this run has
    an id of its own, and leaves the file as it is: the next one may be able to.
    """

    def __init__(
        self, folder: str | None, system: System, place: bytes = b"", own: bytes | None = None
    ) -> None:
        """`folder`: <repository>-<place>, beside those of other places; None: nothing is kept.  `own`: the client id, if it is
        not for this file to say."""
        self._lock = threading.RLock()
        self._path = None if folder is None else os.path.join(folder, "client")
        self.was_damaged = False
        """There was a state file, and it says nothing any more."""
        self.is_unreadable = False
        """There is a state file, and nobody knows what it says."""
        self._said = False
        found = self._load(self._path)
        self.is_new = found is None
        self.predecessors = () if found is not None else self._heads_at(place)
        """Heads seen at this path when another folder stood there."""
        found = found or Remembered(own or system.salt()[:16])
        if own is not None and found.client != own:
            found = Remembered(own)
        self.remembered = msgspec.structs.replace(found, place=place or found.place)
        self._read = found

    @property
    def slot_hint(self) -> str:
        """The key slot to try first: the one that opened last, here or, with a key that can only back up, beside it."""
        return self.remembered.slot or next((found.slot for found in self._elsewhere() if found.slot), "")

    @property
    def id(self) -> bytes:
        return self.remembered.client

    def remember(
        self,
        *,
        heads: Iterable[Head] | None = None,
        slot: str | None = None,
        accepted: Iterable[bytes] | None = None,
        damaged: Iterable[bytes] | None = None,
        leases: Iterable[LeaseNote] | None = None,
        looked: int | None = None,
        doubted: Iterable[tuple[bytes, int]] | None = None,
        gaps: Iterable[bytes] | None = None,
        created: bytes | None = None,
    ) -> None:
        """Whatever is given takes the place of what was remembered of it.  From any thread."""
        with self._lock:
            old = self.remembered
            self.remembered = Remembered(
                old.client,
                old.heads if heads is None else tuple(heads),
                old.slot if slot is None else slot,
                old.place,
                old.accepted if accepted is None else tuple(accepted),
                old.damaged if damaged is None else tuple(sorted(damaged)),
                old.leases if leases is None else tuple(leases),
                old.looked,
                old.doubted if doubted is None else tuple(sorted(doubted)),
                old.gaps if gaps is None else tuple(sorted(gaps)),
                old.created if created is None else created,
            )
            if looked is not None and (self.remembered != self._read or not 0 <= looked - old.looked < _LOOK):
                self.remembered = msgspec.structs.replace(self.remembered, looked=looked)
            if self.remembered != self._read:
                self._save()

    def remember_damage(self, found: Iterable[bytes] = (), gone: Iterable[bytes] = ()) -> None:
        """Names of volumes that were found damaged, or are so no more."""
        with self._lock:
            self.remember(damaged={*self.remembered.damaged, *found}.difference(gone))

    def refresh(self) -> None:
        """Take over what another process of this client has written since this one read the file."""
        if self._path is None or self.is_unreadable:
            return
        with self._lock, contextlib.suppress(OSError):
            self._merge()

    def _load(self, path: str | None) -> Remembered | None:
        if path is None:
            return None
        try:
            found = _recall(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.is_unreadable = True
            log.warning(
                "cannot read %s: %s: what this machine has seen of the repository is unknown to this run, so it cannot tell "
                "whether that was put back to an older state; make the file readable, or delete it to begin anew",
                path, error.strerror,
            )  # fmt: skip
            return None
        self.was_damaged = found is None
        return found

    def _heads_at(self, place: bytes) -> tuple[Head, ...]:
        """What was seen of this repository at this path, in folders that were other ones."""
        heads: dict[Head, None] = {}
        for found in self._elsewhere() if place else ():
            if found.place == place:
                heads.update(dict.fromkeys(found.heads))
        return tuple(heads)

    def created(self, fingerprint: bytes) -> bool:
        """Whether this machine made the repository of these keys, here or where this is a copy of."""
        return any(found.created == fingerprint for found in (self.remembered, *self._elsewhere()))

    def _elsewhere(self) -> Iterator[Remembered]:
        """What is remembered of repositories of this id in other folders."""
        if self._path is None:
            return
        own = os.path.dirname(self._path)
        prefix = os.path.basename(own).partition("-")[0] + "-"
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(os.path.dirname(own))):
                if name.startswith(prefix) and name != os.path.basename(own):
                    with contextlib.suppress(OSError):
                        found = _recall(os.path.join(os.path.dirname(own), name, "client"))
                        if found is not None:
                            yield found

    def _save(self) -> None:
        if self._path is None or self.is_unreadable:
            return
        temporary = f"{self._path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            self._merge()
            payload = msgspec.msgpack.encode(self.remembered)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
                f.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, self._path)
            self._sync_names()
            self._read = self.remembered
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        """Once, and through the log: it may be any thread of a mount that learns of damage."""
        if not self._said:
            self._said = True
            log.warning(
                "cannot write %s: %s: what this machine has seen of the repository is not remembered, so a later run may not "
                "notice that it was put back to an older state; make the file writable, or set XDG_STATE_HOME",
                self._path, error.strerror,
            )  # fmt: skip

    def _sync_names(self) -> None:
        """The file's folder, that of all repositories, and the one above: at first they are all new."""
        folder = self._path or ""
        for _ in range(3):
            folder = os.path.dirname(folder)
            try:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except PermissionError:  # then others made it
                continue
            try:
                os.fsync(fd)
            except OSError as error:
                if error.errno not in NO_FOLDER_FSYNC:
                    raise
            finally:
                os.close(fd)

    def _merge(self) -> None:
        """Take over what another process of this client has added since this one read the file."""
        assert self._path is not None
        try:
            theirs = _recall(self._path)
        except FileNotFoundError:
            return
        if theirs is None or theirs.client != self.id or theirs == self._read:
            return
        own, read = self.remembered, self._read
        self.remembered = msgspec.structs.replace(
            own,
            heads=_merged(own.heads, read.heads, theirs.heads),
            accepted=_merged(own.accepted, read.accepted, theirs.accepted),
            damaged=_merged(own.damaged, read.damaged, theirs.damaged),
            looked=max(own.looked, theirs.looked),
            doubted=_merged(own.doubted, read.doubted, theirs.doubted),
            gaps=_merged(own.gaps, read.gaps, theirs.gaps),
        )
        self._read = theirs


def _recall(path: str) -> Remembered | None:
    """What a state file says; None: nothing, at a second look either.  What one bad read lost would be lost for good.

    Raises OSError.
    """
    found = None
    for _ in range(2):
        with open(path, "rb") as f:
            found = _decode(f.read())
        if found is not None:
            break
    return found


def _decode(data: bytes) -> Remembered | None:
    """None if it is not what was written.  The first versions wrote the record alone."""
    if data.startswith(_MAGIC):
        digest, data = data[len(_MAGIC) : len(_MAGIC) + _DIGEST], data[len(_MAGIC) + _DIGEST :]
        if hashlib.sha256(data).digest() != digest:
            return None
    try:
        found = msgspec.msgpack.decode(data, type=Remembered)
    except UNDECODABLE:
        return None
    return found if len(found.client) == 16 else None


def _merged(own: tuple, read: tuple, theirs: tuple) -> tuple:  # type: ignore[type-arg]
    """`own`, with what `theirs` has that `read` had not, and without what it dropped."""
    added = [one for one in theirs if one not in read and one not in own]
    return (*(one for one in own if one in theirs or one not in read), *added)

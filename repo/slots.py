"""The key slots of a repository: one object in keys/ for each password, which holds the keys sealed with it."""

from __future__ import annotations

import hashlib

from snapfs.repo.client import Client
from snapfs.repo.errors import Damaged, RepositoryError, StorageError, UsageError, WrongPassword
from snapfs.repo.events import Events, KeyNote
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.keyslot import Cost, open_slot, seal_slot
from snapfs.repo.format.records import Bundle
from snapfs.repo.heap import huge_pages
from snapfs.repo.model import KiB
from snapfs.repo.storage.base import Storage, hash_in
from snapfs.repo.system import System


class KeySlots:
    """The slots, once the keys are known.  `current`: name (64 hex digits) of the one that opened."""

    def __init__(self, storage: Storage, repository: bytes, bundle: Bundle, current: str, events: Events, client: Client,
                 system: System) -> None:  # fmt: skip
        self.current = current
        self._storage = storage
        self._repository = repository
        self._bundle = bundle
        self._events = events
        self._client = client
        self._system = system

    def notes(self) -> list[tuple[str, KeyNote | None]]:
        """(name, who added it) of every slot there is."""
        notes = self._events.load().key_notes
        names = sorted(name for path, _ in self._storage.list("keys") if (name := hash_in(path)))
        return [(name.hex(), notes.get(name)) for name in names]

    def add(self, password: bytes, cost: Cost, label: str, host: str, user: str) -> str:
        """Make a slot for another password, and say in an event who did; returns its name."""
        data = seal_slot(self._bundle, password, cost, self._repository, self._system.salt())
        digest = hashlib.sha256(data)
        self._storage.put(
            f"keys/{digest.hexdigest()}", data, lambda back: self._verify(digest.digest(), password, back)
        )
        who = tuple(text.encode("utf-8", "replace") for text in (label, host, user))
        self._events.publish(records.EventBody(records.EVENT_KEY_ADDED, None, (digest.digest(),), who))
        return digest.hexdigest()

    def _verify(self, name: bytes, password: bytes, back: bytes) -> None:
        """Raise Damaged unless the password opens what was written: nobody would know before it is needed."""
        where = "a key slot just written"
        try:
            sound = (
                hashlib.sha256(back).digest() == name and open_slot(back, password, where)[1] == self._bundle
            )
        except WrongPassword:
            sound = False
        if not sound:
            raise Damaged("does not open as it was meant: is the memory of this machine sound?", where)

    def remove(self, name: str) -> None:
        if name == self.current:
            raise UsageError(
                "this key slot is the one in use: open the repository with another password to remove it"
            )
        self._storage.remove(f"keys/{name}")

    def replace(self, password: bytes, cost: Cost, label: str, host: str, user: str) -> str:
        """Put a new slot in place of the one in use: it is durable before the old one goes."""
        old, self.current = self.current, self.add(password, cost, label, host, user)
        self._storage.remove(f"keys/{old}")
        self._client.remember(slot=self.current)
        return self.current


def open_with(password: bytes, storage: Storage, repository: bytes, first: str) -> tuple[str, Bundle]:
    """(name, keys) of the slot that this password opens; `first` is tried first.  Raises WrongPassword, Damaged."""
    names = sorted(path.rsplit("/", 1)[1] for path, _ in storage.list("keys"))
    names.sort(key=lambda name: name != first)
    wrong: WrongPassword | None = None
    damaged: RepositoryError | None = None
    for name in names:
        try:
            data = storage.read(f"keys/{name}", 0, L.RECORD_LIMIT)
            # Before the password is tried: what it says of memory and time may be wrong, and a salt that is would look like a
            # wrong password.
            if hashlib.sha256(data).hexdigest() != name:
                raise Damaged(
                    "the key slot is damaged: copy it back from a copy of the repository", f"keys/{name[:8]}"
                )
            with huge_pages(Cost().memory_kib * KiB):
                header, bundle = open_slot(data, password, f"keys/{name[:8]}")
            if header.repository == repository:
                return name, bundle
        except WrongPassword as error:
            wrong = error
        except (Damaged, StorageError) as error:  # another slot may open all the same
            damaged = error
    if wrong is not None and damaged is not None:
        raise WrongPassword(
            f"{wrong}; or it is that of a key slot which cannot be used: {damaged}"
        ) from damaged
    if wrong is not None:
        raise wrong
    raise damaged or Damaged("no key slot is left: the repository cannot be opened", "keys")

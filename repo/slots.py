"""The key slots of a repository: one object in keys/ for each password, which holds the keys sealed with it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Sequence

from snapfs.repo.client import Client
from snapfs.repo.errors import (
    Damaged,
    RepositoryError,
    StorageError,
    UnsupportedFormat,
    UsageError,
    WrongPassword,
)
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import records, recovery
from snapfs.repo.format.keyslot import Cost, open_slot, parse_slot, seal_slot
from snapfs.repo.format.records import Bundle
from snapfs.repo.heap import huge_pages
from snapfs.repo.keys import Keys
from snapfs.repo.model import KiB
from snapfs.repo.state import KeyNote
from snapfs.repo.storage.base import Storage, hash_in
from snapfs.repo.system import System


class KeySlots:
    """The slots, once the keys are known.  `current`: name (64 hex digits) of the one that opened."""

    def __init__(self, storage: Storage, repository: bytes, bundle: Bundle, current: str, events: Events, client: Client,
                 system: System) -> None:  # fmt: skip
        self.current = current
        self.bundle = bundle
        self._storage = storage
        self._repository = repository
        self._events = events
        self._client = client
        self._system = system

    def notes(self) -> list[tuple[str, KeyNote | None]]:
        """(name, who added it) of every slot there is."""
        notes = self._events.load().key_notes
        names = sorted(name for path, _ in self._storage.list("keys") if (name := hash_in(path)))
        return [(name.hex(), notes.get(name)) for name in names]

    def has_others(self) -> bool:
        """Whether there is a slot beside the one in use."""
        return any(
            name.hex() != self.current for path, _ in self._storage.list("keys") if (name := hash_in(path))
        )

    def add(self, password: bytes | bytearray, *kind: bytes, cost: Cost = Cost(), label: str = "", host: str = "",
            user: str = "") -> str:  # fmt: skip
        """Make a slot for another password, and say in an event who did; returns its name.  `kind`: records.KEY_RECOVERY."""
        self._events.refuse_old_keys()
        name = self.put(password, cost)
        self.announce(name, label, host, user, *kind)
        return name

    def add_backup_only(
        self, bundle: Bundle, password: bytes | bytearray, cost: Cost, label: str, host: str, user: str
    ) -> str:
        """Make a slot for a machine that can only back up, with a bundle of its own (Keys.backup_only); returns its name.

        The event comes first: what such a slot makes counts from the beginning, or it is not there.
        """
        self._events.refuse_old_keys()
        keys = Keys(bundle, "a new key slot")
        data = self._seal(bundle, password, cost)
        name = hashlib.sha256(data).hexdigest()
        kind = (records.KEY_BACKUP_ONLY, keys.host)
        self.announce(name, label, host, user, *kind, more=(keys.client, keys.verifying))
        self._put(name, data, bundle, password)
        return name

    def put(self, password: bytes | bytearray, cost: Cost) -> str:
        """Make a slot that nobody knows of yet; returns its name."""
        data = self._seal(self.bundle, password, cost)
        name = hashlib.sha256(data).hexdigest()
        self._put(name, data, self.bundle, password)
        return name

    def _seal(self, bundle: Bundle, password: bytes | bytearray, cost: Cost) -> bytes:
        data = seal_slot(bundle, password, cost, self._repository, self._system.salt())
        if len(data) > _LARGEST:
            raise UsageError(
                "the keys of this repository were changed too often: no key slot has room for more"
            )
        return data

    def _put(self, name: str, data: bytes, bundle: Bundle, password: bytes | bytearray) -> None:
        self._storage.put(f"keys/{name}", data, lambda back: _verify(name, bundle, password, back))

    def announce(
        self, name: str, label: str, host: str, user: str, *kind: bytes, more: tuple[bytes, ...] = ()
    ) -> None:
        """`kind`, `more`: what stands in tags and ids behind what stands there for every slot."""
        who = tuple(text.encode("utf-8", "replace") for text in (label, host, user))
        ids = (bytes.fromhex(name), *more)
        body = records.EventBody(records.EVENT_KEY_ADDED, None, ids, (*who, *kind))
        self._events.publish(body)

    def add_recovery(self, *, cost: Cost = Cost(), host: str = "", user: str = "") -> tuple[str, str]:
        """Make a recovery key, and a slot for it; returns the slot's name and the key as it is printed."""
        key = recovery.make(self._system.salt()[: recovery.RANDOM_BYTES])
        return self.add(key.encode(), records.KEY_RECOVERY, cost=cost, host=host, user=user), key

    def opened_by(self, passwords: Sequence[bytes | bytearray]) -> dict[str, bytes | bytearray]:
        """Of the other slots, those that one of these opens: name -> password.  Raises WrongPassword if one opens none.

        It takes a derivation for each password and slot.
        """
        found: dict[str, bytes | bytearray] = {}
        for name in (name for name, _ in self.notes() if name != self.current):
            with contextlib.suppress(Damaged, StorageError, UnsupportedFormat):
                data = _usable_slot(self._storage, name, self._repository)
                for password in passwords:
                    with contextlib.suppress(WrongPassword):
                        _, bundle = open_slot(data, password, f"keys/{name[:8]}")
                        if bundle.role != L.ROLE_EVERYTHING:
                            raise UsageError(
                                f"{name[:8]} is a key that can only back up: it ends with the keys it seals to; make another one "
                                "afterwards with `snapfs key add --backup-only`"
                            )
                        found[name] = password
                        break
        useless = [number for number, password in enumerate(passwords, 1) if password not in found.values()]
        if useless:
            raise WrongPassword(
                f"the password number {useless[0]} of those to be kept opens no other key slot"
            )
        return found

    def cost(self, name: str) -> Cost:
        """What deriving takes for a slot; the usual for one that is damaged."""
        with contextlib.suppress(Damaged, UnsupportedFormat):
            return parse_slot(sound_slot(self._storage, name), f"keys/{name[:8]}")[1]
        return Cost()

    def export(self, name: str) -> bytes:
        """The bytes of a slot, still sealed.  Raises Damaged if they are not those it is named for, StorageError."""
        return sound_slot(self._storage, name)

    def remove(self, name: str) -> None:
        if name == self.current:
            raise UsageError(
                "this key slot is the one in use: open the repository with another password to remove it"
            )
        self._events.refuse_old_keys()
        slot = bytes.fromhex(name)
        note = self._events.load().key_notes.get(slot)
        if note is not None and note.backs_up is not None:
            self._events.remove_key(slot)  # whoever has a copy of it adds nothing more
        self._storage.remove(f"keys/{name}")

    def replace(self, password: bytes | bytearray, *, cost: Cost = Cost(), label: str = "", host: str = "",
                user: str = "") -> str:  # fmt: skip
        """Put a new slot in place of the one in use: it is durable before the old one goes."""
        note = self._events.load().key_notes.get(bytes.fromhex(self.current))
        if note is not None and note.is_recovery:
            raise UsageError(
                "the recovery key is no password to change: add a new password with `snapfs key add`; the recovery key stays"
            )
        old, self.current = self.current, self.add(password, cost=cost, label=label, host=host, user=user)
        self._storage.remove(f"keys/{old}")
        self._client.remember(slot=self.current)
        return self.current


def _verify(name: str, bundle: Bundle, password: bytes | bytearray, back: bytes) -> None:
    """Raise Damaged unless the password opens what was written: nobody would know before it is needed."""
    where = "a key slot just written"
    try:
        sound = hashlib.sha256(back).hexdigest() == name and open_slot(back, password, where)[1] == bundle
    except WrongPassword:
        sound = False
    if not sound:
        raise Damaged("does not open as it was meant: is the memory of this machine sound?", where)


def import_slot(storage: Storage, repository: bytes, data: bytes) -> tuple[str, bool]:
    """Put back a slot that was exported: (its name, whether it was not there).  No password is needed: it stays sealed.

    Raises UsageError if it is of another repository, Damaged if it is no key slot.
    """
    header, _ = parse_slot(data, "the exported key slot")
    if header.repository != repository:
        raise UsageError(
            f"this key slot is of the repository {header.repository.hex()[:8]}, and here is {repository.hex()[:8]}: "
            "name the repository it was exported from"
        )
    name = hashlib.sha256(data).hexdigest()
    path = f"keys/{name}"
    try:
        if storage.size(path) == len(data) and storage.read(path) == data:
            return name, False
    except StorageError as error:  # it is there and cannot be read: it is written anew
        if error.errno != errno.EIO:
            raise
    storage.put(path, data)
    return name, True


_DAMAGED = "the key slot is damaged: put it back with `snapfs key import`, or from a copy of the repository"
_LARGEST = 64 * KiB
"""Bytes of a slot: ours have 1 KiB.  What is larger is not read into memory."""
_WRONG = "wrong password: no key slot of this repository opens with it"


def open_with(
    password: bytes | bytearray,
    storage: Storage,
    repository: bytes,
    first: str,
    *,
    newest: bool = False,
    again: int = 2,
) -> tuple[str, Bundle]:
    """(name, keys) of the slot that this password opens; `first` is tried first.  `newest`: all are tried, and that with the
    newest keys counts.  `again`: so often a look is repeated during which slots were removed.

    Whatever is wrong, a password that opens nothing gets WrongPassword.  Its message may say which slots cannot be used, as
    anybody can see who has the folder; it never depends on whether the password is that of such a slot, and neither does the
    time.  Raises Damaged if there is no slot, StorageError or UnsupportedFormat if none can be read.
    """
    names = sorted(there.hex() for path, _ in storage.list("keys") if (there := hash_in(path)))
    if not names:
        raise Damaged(
            "no key slot is left: put one back with `snapfs key import`, or from a copy of the repository",
            "keys",
        )
    names.sort(key=lambda name: name != first)
    unusable: list[RepositoryError] = []
    found: list[tuple[str, Bundle]] = []
    for name in names:
        where = f"keys/{name[:8]}"
        try:
            data = _usable_slot(storage, name, repository)
        except (Damaged, StorageError, UnsupportedFormat) as error:  # another slot may open all the same
            unusable.append(error)
            continue
        try:
            with huge_pages(Cost().memory_kib * KiB):
                found.append((name, open_slot(data, password, where)[1]))
                if not newest:
                    break
        except (WrongPassword, Damaged):
            continue  # Damaged here means that the password is right, and nobody may learn that from a changed slot
    if found:
        return max(found, key=lambda one: newest_epoch(one[1]))
    if again and any(isinstance(error, StorageError) and error.errno == errno.ENOENT for error in unusable):
        # Removed while this looked, perhaps for a new one that was not there yet when they were listed.
        return open_with(password, storage, repository, first, newest=newest, again=again - 1)
    if len(unusable) == len(names) and not any(isinstance(error, Damaged) for error in unusable):
        raise unusable[0]
    mistake = recovery.mistyped(password)
    hint = "" if mistake is None else f" ({mistake})"
    if unusable:
        hint += f"; {len(unusable)} of {len(names)} cannot be used, whatever the password is: {unusable[0]}"
    raise WrongPassword(_WRONG + hint) from (unusable[0] if unusable else None)


def newest_epoch(bundle: Bundle) -> int:
    return max((key.epoch for key in bundle.keys), default=0)


def sound_slot(storage: Storage, name: str) -> bytes:
    """The bytes of a slot.  Raises Damaged unless they are those it is named for, StorageError."""
    for _ in range(2):  # one bad read is no lost password
        data = storage.read(f"keys/{name}", 0, _LARGEST + 1)
        if len(data) <= _LARGEST and hashlib.sha256(data).hexdigest() == name:
            return data
    raise Damaged(_DAMAGED, f"keys/{name[:8]}")


def _usable_slot(storage: Storage, name: str, repository: bytes) -> bytes:
    """The bytes of a slot that a password may be tried on.  Raises Damaged, UnsupportedFormat, StorageError.

    All that can be told without a password is looked at: what a damaged slot says of memory and time may be wrong, and a salt
    that is would look like a wrong password.
    """
    data, where = sound_slot(storage, name), f"keys/{name[:8]}"
    found = parse_slot(data, where)[0].repository
    if found != repository:
        raise Damaged(
            f"the key slot is of another repository ({found.hex()[:8]}) than config ({repository.hex()[:8]}): if it is damaged, "
            "move it away and try again", where,
        )  # fmt: skip
    return data

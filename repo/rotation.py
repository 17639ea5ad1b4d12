"""New keys for a repository: who had a password, or a copy of a key slot, reads what was and nothing that comes.

The order of writes, and why it can end anywhere, is in docs/concurrency.md; which events count afterwards, in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from snapfs.repo.config import verify_config
from snapfs.repo.errors import Damaged, OldKeys, RepositoryLocked, StorageError, UnsupportedFormat, UsageError
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.keyslot import Cost
from snapfs.repo.format.records import Bundle, KeyEntry
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.keys import Keys
from snapfs.repo.model import KiB, VolumeKind
from snapfs.repo.progress import SILENT, Progress
from snapfs.repo.quiet import Quiet
from snapfs.repo.repository import Repository
from snapfs.repo.slots import KeySlots
from snapfs.repo.storage.locks import Lease

_ROOM = 64 * KiB
"""For events and the config, with blocks of 4 KiB."""
_HEADS = 16
"""Heads that the key slots name, at most: only where the event that names them all is damaged are they looked for there."""


@dataclass(frozen=True)
class Rotated:
    epoch: int
    """Of the keys from now on."""
    slot: str
    """The name of the key slot of the password in use."""
    kept: tuple[str, ...]
    """Those that were made for other passwords."""
    ended: tuple[str, ...]
    """Those that were removed, and have no successor."""


def rotate(
    repository: Repository,
    password: bytes | bytearray,
    kept: Mapping[str, bytes | bytearray],
    *,
    new_password: bytes | bytearray | None = None,
    cost: Cost | None = None,
    host: str = "",
    user: str = "",
    patience: float = 0,
    progress: Progress = SILENT,
) -> Rotated:
    """Seal with new keys from now on, and end all key slots but those whose passwords are known here.

    `password`: that which opened the repository; `new_password`: one that takes its place; `kept`: other slots -> their passwords
    (KeySlots.opened_by).  `cost`: of the new slot of the password in use; None: as it was.  `patience`: seconds to wait for
    writers.  The repository is to be closed afterwards: it has the old keys.

    Raises RepositoryLocked if somebody writes, OldKeys if somebody has changed the keys, Damaged, StorageError.
    """
    with repository.storage.locks.alone():
        lease = Lease(repository.storage.locks)  # for prunes and rotations that do not see the lock
        try:
            repository.storage.sweep()
            change = _Rotation(repository, host, user)
            quiet = Quiet(repository, lease, patience, progress)
            with quiet.shut() as free:
                if not free:
                    who = ", ".join(sorted({f"process {writer.process}" for writer in quiet.in_the_way}))
                    raise RepositoryLocked(
                        f"the keys were not changed, since a backup or another command writes here: {who}; run it again when "
                        "that is over, or with --retry-lock 10m"
                    )
                change.close(kept)
                change.seal_config()
            return change.complete(password, new_password, cost, kept)
        finally:
            lease.release()


def refuse_doubts(repository: Repository) -> None:
    """Raise OldKeys or StorageError where the keys cannot be changed: what cannot be read now would not count afterwards, also
    if it can be read again."""
    state = repository.events.load()
    if state.newer and state.closed is not None:
        raise OldKeys(
            "nothing was changed: the keys of this repository were changed before, and this password opens the old ones; "
            "use one that was made since"
        )
    if state.newer:
        said = next(text for text in state.problems if "newer keys" in text)
        raise OldKeys(
            f"nothing was changed: {said}; if nobody has changed the keys, somebody has put that file into events/: move it away"
        )
    if state.problems:
        raise StorageError(
            f"{state.problems[0]}: it would never count again, so the keys were not changed; bring it back from a copy of the "
            "repository, or take its file out of events/ (--accept-rollback then)"
        )


class _Rotation:
    def __init__(self, repository: Repository, host: str, user: str) -> None:
        self._repository = repository
        self._host, self._user = host, user
        if repository.keys.epoch >= L.EPOCHS_LIMIT:
            raise UsageError(
                f"the keys of this repository were changed {repository.keys.epoch - 1} times: begin a new one"
            )
        refuse_doubts(repository)

    def close(self, kept: Mapping[str, bytes | bytearray]) -> None:
        """The old epoch ends: from here on, who has its keys sees that, and writes nothing more.  While nobody writes."""
        repository, slots = self._repository, self._repository.slots
        refuse_doubts(repository)  # others wrote while this waited for them
        self._slots = [name for name, _ in slots.notes()]
        if gone := {slots.current, *kept}.difference(self._slots):
            raise UsageError(
                f"nothing was changed: the key slot {min(gone)[:8]} was removed meanwhile; run this again"
            )
        self._costs = {name: slots.cost(name) for name in (slots.current, *kept)}
        listing = repository.volumes.listing().items()
        volumes = [name for name, (kind, _) in listing if self._is_trusted(kind, name)]
        free, need = repository.storage.free(), _ROOM + 80 * len(volumes) + 16 * KiB * len(self._costs)
        # Old keys that ended, without new ones, let nobody write, prune neither.
        if free is not None and free < need:
            raise StorageError(
                f"nothing was changed: the disk has {free // KiB:,} KiB free, and new keys need {need // KiB:,}: free some space"
            )
        self._said, self._before = repository.events.close_epoch(volumes, self._host, self._user)
        state = repository.events.state()
        self._snapshots = {snapshot.id for snapshot in state.snapshots}
        self._notes = state.key_notes

    def _is_trusted(self, kind: VolumeKind, name: bytes) -> bool:
        try:
            return self._repository.trusts(kind, name)
        except (Damaged, StorageError, UnsupportedFormat):  # read from if need be, then as now
            return False

    def complete(
        self,
        password: bytes | bytearray,
        new_password: bytes | bytearray | None,
        cost: Cost | None,
        kept: Mapping[str, bytes | bytearray],
    ) -> Rotated:
        """The slots, and then everything that is of the old epoch goes."""
        repository, old = self._repository, self._repository.slots
        bundle, keys = self._bundle, self._keys
        events = Events(repository.storage, keys, repository.id, repository.client, repository.system)
        if {snapshot.id for snapshot in events.load().snapshots} != self._snapshots:
            raise Damaged("not all snapshots would count under new keys: run `snapfs check`", "events")
        slots = KeySlots(
            repository.storage,
            repository.id,
            bundle,
            old.current,
            events,
            repository.client,
            repository.system,
        )
        passwords = {old.current: password if new_password is None else new_password, **kept}
        costs = self._costs | ({} if cost is None else {old.current: cost})
        made = {name: slots.put(word, costs[name]) for name, word in passwords.items()}
        current = made[old.current]
        repository.client.remember(slot=current)
        for before, name in made.items():
            self._announce(slots, name, before, is_new=name == current and new_password is not None)
        others = self._slots  # what came since has the new keys, or opens nothing that counts
        for slot in map(bytes.fromhex, others):
            if (note := self._notes.get(slot)) is not None and note.backs_up is not None:
                events.remove_key(slot)  # it was granted something, which new keys do not end
        repository.storage.remove_all(f"keys/{name}" for name in others)
        ended = tuple(name for name in others if name not in made)
        return Rotated(keys.epoch, current, tuple(made[name] for name in kept), ended)

    def _new_bundle(self) -> Bundle:
        """All keys there were, new ones, and what tells which events and volumes of the old ones count."""
        keys, old = self._repository.keys, self._repository.slots.bundle
        epoch = keys.epoch + 1
        config = self._repository.config
        features = (*config.read_features, L.FEATURE_EPOCHS)
        config = msgspec.structs.replace(config, read_features=tuple(dict.fromkeys(features)))
        return Bundle(
            old.version,
            old.role,
            (
                *(key for key in old.keys if key.name not in (L.ROTATION, L.BEFORE_ROTATION)),
                *keys.next(self._repository.system),
                *(KeyEntry(L.ROTATION, epoch, name) for name in self._said),
                *(KeyEntry(L.BEFORE_ROTATION, epoch, name) for name in self._before[:_HEADS]),
            ),
            records.encode(config),
        )

    def _announce(self, slots: KeySlots, name: str, before: str, *, is_new: bool) -> None:
        note = self._notes.get(bytes.fromhex(before))
        kind = () if note is None or not note.is_recovery or is_new else (records.KEY_RECOVERY,)
        slots.announce(name, "" if note is None else note.label, self._host, self._user, *kind)

    def seal_config(self) -> None:
        """Its header says the new epoch: that is all that a machine sees which can only back up, so it is there before such a one
        can begin again.  For all others the key slots have a copy of it."""
        repository = self._repository
        bundle = self._bundle = self._new_bundle()
        keys = self._keys = Keys(bundle, "new keys")
        salt = repository.system.salt(repository.client.id)
        sealer = Sealer(keys.sealing(L.CONFIG), L.CONFIG, repository.id, salt, epoch=keys.epoch)
        data = seal_record(sealer, bundle.config)
        repository.storage.put("config", data, lambda back: verify_config(keys, back, bundle))

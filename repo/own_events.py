"""The chain of a machine that can only back up: it adds to it, and opens none of it, nor anything of others.

Its events name those before them in this chain and no others.  What it committed, it knows from its state file only.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

from snapfs.repo.errors import BackupOnly, Damaged, OldKeys, RepositoryError, StorageError
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient, records
from snapfs.repo.format.envelope import parse_header
from snapfs.repo.format.records import Event, EventBody, Head, Signed
from snapfs.repo.format.sealed import open_record, seal_record
from snapfs.repo.state import State
from snapfs.repo.storage.base import hash_in

_CHANGED = (
    "the keys of this repository seem to have been changed: then nothing that this key adds counts any more; ask for a new one "
    "(snapfs key add --backup-only)"
)


class OwnEvents(Events):
    """As Events, of one's own: there are no snapshots in its state, and of what is missing only what was one's own."""

    def load(self) -> State:
        """Raises StorageError if the events cannot be listed."""
        self._client.refresh()
        there = {name for path, _ in self._storage.list("events") if (name := hash_in(path)) is not None}
        seen = [head for head in dict.fromkeys(self._seen()) if head.client == self._client.id]
        accepted = set(self._client.remembered.accepted)
        gone = {
            head.name: f"event {head.name.hex()[:8]} is missing, though this machine has published it: files were deleted, "
            "or the repository was put back to an older state"
            for head in seen
            if head.name not in there
        }
        state = State(
            heads=tuple(head for head in seen if head.name in there),
            sequence=max((head.sequence for head in seen), default=0),
            accepted=tuple(sorted(accepted & gone.keys())),
            missing={name: why for name, why in gone.items() if name not in accepted},
        )
        state.problems += state.missing.values()
        if self._keys_seem_changed():
            state.notices.append(_CHANGED)
        return state

    def _keys_seem_changed(self) -> bool:
        """What the header of the config says, which anybody can write who can write here."""
        with contextlib.suppress(RepositoryError):
            data = self._storage.read("config", 0, L.HEADER_SIZE)
            return parse_header(data, "config").epoch > self._keys.epoch
        return False

    def accept(self) -> None:
        state = self.load()
        self._client.remember(heads=state.heads, accepted=[*state.accepted, *state.missing])

    def may_have_changed(self) -> bool:
        return False

    def publish(self, body: EventBody) -> bytes:
        """Raises OldKeys after a snapshot that may not count: it is there all the same, since anybody can write such a header."""
        if body.type not in (records.EVENT_SNAPSHOT, records.EVENT_CHECKPOINT):
            raise BackupOnly
        state, keys = self.load(), self._keys
        event = Event(1, self._client.id, state.sequence + 1, state.heads, self._system.now(), body)
        sealer = keys.sealer(L.EVENT, self._repository, self._system, self._client.id)
        signed = recipient.signed(keys.signing, sealer.header, records.encode(event))
        data = seal_record(sealer, records.encode(signed))
        if len(data) > L.RECORD_LIMIT:
            raise StorageError("an event would be too large: fewer paths, tags or exclude rules, please")
        name = hashlib.sha256(data).digest()

        def verify(back: bytes) -> None:
            where = "an event just written"
            opener = keys.written(sealer, back, where, L.EVENT, self._repository)
            found = records.decode(Signed, open_record(opener, back), where)
            holds = recipient.verified(keys.verifying, opener.header, found)
            same = holds and records.decode(Event, found.record, where) == event
            if not same or hashlib.sha256(back).digest() != name:
                raise Damaged(
                    "does not read back as it was meant: is the memory of this machine sound?", where
                )

        self._storage.put(f"events/{name.hex()}", data, verify)
        lost = [head for head in self._seen() if head.name in state.missing]
        self._client.remember(heads=[Head(self._client.id, event.sequence, name), *lost])
        if body.type == records.EVENT_SNAPSHOT and self._keys_seem_changed():
            raise OldKeys(f"what was just written may not count: {_CHANGED}")
        return name

    def forget(self, ids: Sequence[bytes]) -> None:
        raise BackupOnly

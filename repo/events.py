"""The clients' chains: read all events there are, publish one more.

What they add up to is for fold.py to say.
"""

from __future__ import annotations

import errno
import hashlib
import math
import time
from collections.abc import Sequence

from snapfs.repo.client import Client
from snapfs.repo.counting import NewerEvent, came_before
from snapfs.repo.errors import Damaged, OldKeys, StorageError, UnsupportedFormat
from snapfs.repo.fold import Fold, Opened, changed
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import parse_header
from snapfs.repo.format.records import Event, EventBody, Head
from snapfs.repo.format.sealed import open_record, seal_record
from snapfs.repo.grants import open_claim
from snapfs.repo.keys import Keys
from snapfs.repo.model import Snapshot
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.storage.base import Storage, hash_in
from snapfs.repo.system import System

_LISTED = 100_000
"""Names in one event of a change of keys, at most: it may have 4 MiB."""
_AGAIN_SECONDS = 60
"""A failing disk may take ten for each try."""


class Events:
    """The events of one repository.  Opened events are kept, so loading again costs one listing."""

    def __init__(
        self, storage: Storage, keys: Keys, repository: bytes, client: Client, system: System
    ) -> None:
        self._storage = storage
        self._keys = keys
        self._repository = repository
        self._client = client
        self._system = system
        self._opened: dict[bytes, Opened] = {}
        self._epochs: dict[bytes, int] = {}
        """Of the keys that opened each of them."""
        self._counted: dict[bytes, Event] = {}
        """Those that count: all, as long as the keys were never changed, and nobody said what he may not."""
        self._verified: dict[tuple[bytes, bytes], bool] = {}
        """Event and key -> whether the signature holds."""
        self._state: State | None = None
        self._stamp: object = None
        self._again_at = 0.0
        """When damaged events are opened once more (monotonic seconds)."""
        self._looked = 0
        """When the last listing began."""
        self._published: set[bytes] = set()
        """Names of the events of this process: it knows what they say."""

    def load(self) -> State:
        """List and fold.  An event that the disk does not give back is damaged, until it does.

        Raises StorageError if the list or an event cannot be read for another reason, UnsupportedFormat for newer events.
        """
        state = self._load()
        # A list that others add to while it is read may have an event and lack one that came before it.
        if any(name and self._storage.size(f"events/{name.hex()}") is not None for name in state.missing):
            state = self._load()
        return state

    def state(self) -> State:
        """As it was at the last look, if there was one."""
        return self.load() if self._state is None else self._state

    def _load(self) -> State:
        looked = self._system.now()
        stamp = self._storage.stamp("events")
        names = {}
        for path, size in self._storage.list("events"):
            name = hash_in(path)
            if name is not None:
                names[name] = size
        self._looked = looked
        again = time.monotonic() >= self._again_at
        opened = {name: self._known(name, again) or self._open(name, size) for name, size in names.items()}
        if self._state is None or opened != self._opened:
            self._opened = opened
            self._state = self._fold()
            self._remember_durable(self._state)
        if not any(isinstance(event, str) for event in opened.values()):
            self._again_at = math.inf
        elif again or self._again_at == math.inf:
            self._again_at = time.monotonic() + _AGAIN_SECONDS
        self._stamp = stamp
        return self._state

    def _known(self, name: bytes, again: bool) -> Opened | None:
        """What a disk does not give back now it may give back later, so that is not known for ever."""
        event = self._opened.get(name)
        return None if again and isinstance(event, str) else event

    def accept(self) -> None:
        """Take the state as it is for right: what is missing now is not said again on this machine."""
        state = self.load()
        self._client.remember(heads=state.heads, accepted=[*state.accepted, *state.missing])
        self._state = self._fold()

    def may_have_changed(self) -> bool:
        """Whether load() could find anything new: one look at the folder, for those who would ask at every turn."""
        stamp = self._storage.stamp("events")
        return stamp is None or stamp != self._stamp or time.monotonic() >= self._again_at

    def refuse_old_keys(self) -> None:
        """Raise OldKeys if what these keys seal does not count any more."""
        closed = self.load().closed
        if closed is not None:
            raise OldKeys(f"nothing was written: {changed(closed)}")

    def publish(self, body: EventBody) -> bytes:
        """Append an event to this client's chain: the commit of whatever it says.  Returns its name.

        Raises OldKeys if the keys were changed before, or at this moment on another machine: then it may not count.
        """
        self.refuse_old_keys()
        name = self._append(body)
        state = self._load()
        if state.closed is not None and name not in came_before(self._counted, self._closing()):
            raise OldKeys(f"what was just written may not count: {changed(state.closed)}")
        return name

    def close_epoch(
        self, volumes: Sequence[bytes], host: str, user: str
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Say that the keys are changed, and what there is of events and `volumes` (names): nothing that comes later under these
        keys counts.  Returns the names of the events that say so, and of the heads before them.

        What cannot be read is not among them (rotation.refuse_doubts).  Who published at this moment is taken up: afterwards
        these events have seen all there are.
        """
        who = (host.encode("utf-8", "replace"), user.encode("utf-8", "replace"))
        before = tuple(head.name for head in self.load().heads)
        while True:
            names = [*self._counted, *volumes]
            parts = [tuple(names[at : at + _LISTED]) for at in range(0, len(names), _LISTED)]
            said = [self._append(EventBody(records.EVENT_KEYS_CHANGED, None, part, who)) for part in parts]
            if [head.name for head in self.load().heads] == said[-1:]:
                return tuple(said), before

    def _append(self, body: EventBody) -> bytes:
        """After what was there at the last look."""
        state = self.state()
        event = Event(1, self._client.id, state.sequence + 1, state.heads, self._system.now(), body)
        sealer = self._keys.sealer(L.EVENT, self._repository, self._system, self._client.id)
        data = seal_record(sealer, records.encode(event))
        if len(data) > L.RECORD_LIMIT:
            raise StorageError("an event would be too large: fewer paths, tags or exclude rules, please")
        name = hashlib.sha256(data).digest()
        self._storage.put(f"events/{name.hex()}", data, lambda back: self._verify(name, event, back))
        self._opened[name] = event
        self._epochs[name] = self._keys.epoch
        self._published.add(name)
        self._state = self._fold()
        self._remember(self._state)
        return name

    def _closing(self) -> list[bytes]:
        """Names of the events that ended the newest epoch there are keys for."""
        return [
            name for name, event in self._counted.items()
            if event.body.type == records.EVENT_KEYS_CHANGED and self._epochs[name] == self._keys.epoch
        ]  # fmt: skip

    def _verify(self, name: bytes, event: Event, back: bytes) -> None:
        """Raise Damaged unless a stranger would find this event under this name."""
        where = "an event just written"
        opener = self._keys.opener(L.EVENT, back, where, self._repository)
        found = records.decode(Event, open_record(opener, back), where)
        if hashlib.sha256(back).digest() != name or found != event:
            raise Damaged("does not read back as it was meant: is the memory of this machine sound?", where)

    def publish_snapshot(self, snapshot: Snapshot) -> StoredSnapshot:
        record = records.encode(snapshot)
        if records.decode_snapshot(record, "the new snapshot") != snapshot:
            raise Damaged(
                "does not read back as it was meant: is the memory of this machine sound?", "the new snapshot"
            )
        kind = records.EVENT_SNAPSHOT if snapshot.complete else records.EVENT_CHECKPOINT
        self.publish(EventBody(kind, record))
        return StoredSnapshot(self._keys.snapshot_id(record), snapshot, snapshot.tags, self._client.id)

    def set_tags(self, snapshot_id: bytes, tags: Sequence[bytes]) -> None:
        self.publish(EventBody(records.EVENT_TAGS, None, (snapshot_id,), tuple(tags)))

    def forget(self, ids: Sequence[bytes]) -> None:
        self.publish(EventBody(records.EVENT_FORGET, None, tuple(ids)))

    def undelete(self, ids: Sequence[bytes]) -> None:
        """Whether all that they need is there is for the caller to see (repo.undelete)."""
        self.publish(EventBody(records.EVENT_UNDELETE, None, tuple(ids)))

    def remove_key(self, slot: bytes) -> None:
        """Of a slot that can only back up: what comes from there after this does not count."""
        self.publish(EventBody(records.EVENT_KEY_REMOVED, None, (slot,)))

    def _open(self, name: bytes, size: int) -> Opened:
        """The event, or what is wrong with it."""
        path = f"events/{name.hex()}"
        if size > L.RECORD_LIMIT:
            return f"event {name.hex()[:8]} is damaged: too large"
        try:
            data = self._read(path, name)
            try:
                opener = self._keys.opener(L.EVENT, data, path, self._repository)
            except OldKeys:
                return NewerEvent(parse_header(data, path).epoch)
            except UnsupportedFormat as error:
                # Nobody vouches for a header: it must not stop every command.
                return f"event {name.hex()[:8]} cannot be read: {error}"
            self._epochs[name] = opener.epoch
            if opener.wrap == L.WRAP_BACKUP_ONLY:
                return open_claim(opener, data, path)
            record = open_record(opener, data)
            try:
                return records.decode(Event, record, path)
            except UnsupportedFormat as error:
                if opener.epoch == self._keys.epoch:
                    raise
                # Nor must who has old keys.
                return f"event {name.hex()[:8]} cannot be read: {error}"
        except Damaged as error:
            return f"event {name.hex()[:8]} is damaged: {error}"

    def _read(self, path: str, name: bytes) -> bytes:
        """A whole event; at a second try, if need be: what a command does without it may be for good.  A bad sector is damage,
        which other events need not suffer from."""
        for last in (False, True):
            try:
                data = self._storage.read(path)
                if hashlib.sha256(data).digest() == name:
                    return data
                if last:
                    raise Damaged("its bytes are not those it was named for")
            except StorageError as error:
                if error.errno != errno.EIO:
                    raise
                if last:
                    raise Damaged("the disk cannot read it: Input/output error") from error
        raise AssertionError

    def _fold(self) -> State:
        folded = Fold(
            self._opened, self._epochs, self._keys, self._client, self._seen(), self._published, self._verified,
            self._system.now(),
        )  # fmt: skip
        self._counted = folded.counted
        return folded.state

    def _remember_durable(self, state: State) -> None:
        """Of events that others published: one who died may not have made his durable, and when it is gone with the power, it
        must not be missed like one that somebody deleted."""
        remembered = {head.name for head in self._client.remembered.heads}
        try:
            self._storage.adopt(f"events/{h.name.hex()}" for h in state.heads if h.name not in remembered)
        except StorageError:
            return
        self._remember(state)

    def _remember(self, state: State) -> None:
        """The heads of now, and those that were here once and are missing or damaged: a rollback is said until it is undone or
        accepted."""
        lost = [
            head
            for head in self._seen()
            if head.name in state.missing or isinstance(self._opened.get(head.name), (str, NewerEvent))
        ]
        self._client.remember(
            heads=[*state.heads, *lost],
            accepted=state.accepted,
            looked=self._looked,
            doubted=state.times.doubted.items(),
            gaps=state.times.gaps,
        )

    def _seen(self) -> list[Head]:
        return [*self._client.remembered.heads, *self._client.predecessors]

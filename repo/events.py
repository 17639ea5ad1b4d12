"""The clients' chains: publish an event, fold all events into the state of the repository.

Each event names the heads its writer had seen, so the events form a graph.  What they add up to does not depend on clocks: an
event counts after everything it had seen; among events that had not seen one another, time and name decide.  An event that
another one names and that is not there is damage or tampering, and is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from snapfs.repo.client import Client
from snapfs.repo.errors import Damaged, StorageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import Opener, Sealer
from snapfs.repo.format.records import Event, EventBody, Head
from snapfs.repo.format.sealed import open_record, seal_record
from snapfs.repo.keys import Keys
from snapfs.repo.model import Snapshot
from snapfs.repo.storage.base import Storage, hash_in
from snapfs.repo.system import System


class StoredSnapshot(NamedTuple):
    """A snapshot as it stands now."""

    id: bytes
    record: Snapshot
    tags: tuple[bytes, ...]
    """As of now: tag events may have changed what the record says."""
    client: bytes

    @property
    def short(self) -> str:
        return self.id.hex()[:8]


class KeyNote(NamedTuple):
    """Who added a key slot, and when (ns)."""

    label: str
    host: str
    user: str
    time: int


@dataclass
class State:
    """What the events add up to."""

    snapshots: list[StoredSnapshot] = field(default_factory=list)
    """Complete and not forgotten, ascending by time."""
    checkpoints: list[StoredSnapshot] = field(default_factory=list)
    forgotten: frozenset[bytes] = frozenset()
    """Ids of snapshots that are not shown any more."""
    problems: list[str] = field(default_factory=list)
    """All that is wrong with the events; what is `missing` is among it."""
    missing: dict[bytes, str] = field(default_factory=dict)
    """Events that were here and are not (b"": all of them), and how that is known; without those whose loss was accepted."""
    accepted: tuple[bytes, ...] = ()
    """Names of missing events whose loss was accepted on this machine."""
    key_notes: dict[bytes, KeyNote] = field(default_factory=dict)
    heads: tuple[Head, ...] = ()
    sequence: int = 0
    """The highest sequence number of this client."""


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
        self._opened: dict[bytes, Event | str] = {}
        self._state: State | None = None
        self._stamp: object = None

    def load(self) -> State:
        """List and fold.

        Raises StorageError if the list or an event cannot be read, UnsupportedFormat for newer events.
        """
        state = self._load()
        # A list that others add to while it is read may have an event and lack one that came before it.
        if any(name and self._storage.size(f"events/{name.hex()}") is not None for name in state.missing):
            state = self._load()
        return state

    def _load(self) -> State:
        stamp = self._storage.stamp("events")
        names = {}
        for path, size in self._storage.list("events"):
            name = hash_in(path)
            if name is not None:
                names[name] = size
        self._stamp = stamp
        if self._state is not None and names.keys() == self._opened.keys():
            return self._state
        self._opened = {
            name: self._opened.get(name) or self._open(name, size) for name, size in names.items()
        }
        self._state = self._fold()
        self._remember_durable(self._state)
        return self._state

    def accept(self) -> None:
        """Take the state as it is for right: what is missing now is not said again on this machine."""
        state = self.load()
        self._client.remember(heads=state.heads, accepted=[*state.accepted, *state.missing])
        self._state = self._fold()

    def may_have_changed(self) -> bool:
        """Whether load() could find anything new: one look at the folder, for those who would ask at every turn."""
        stamp = self._storage.stamp("events")
        return stamp is None or stamp != self._stamp

    def publish(self, body: EventBody) -> bytes:
        """Append an event to this client's chain: the commit of whatever it says.  Returns its name."""
        state = self.load()
        event = Event(1, self._client.id, state.sequence + 1, state.heads, self._system.now(), body)
        sealer = Sealer(
            self._keys.sealing(L.EVENT),
            L.EVENT,
            self._repository,
            self._system.salt(self._client.id),
            epoch=self._keys.epoch,
        )
        data = seal_record(sealer, records.encode(event))
        if len(data) > L.RECORD_LIMIT:
            raise StorageError("an event would be too large: fewer paths, tags or exclude rules, please")
        name = hashlib.sha256(data).digest()
        self._storage.put(f"events/{name.hex()}", data, lambda back: self._verify(name, event, back))
        self._opened[name] = event
        self._state = self._fold()
        self._remember(self._state)
        return name

    def _verify(self, name: bytes, event: Event, back: bytes) -> None:
        """Raise Damaged unless a stranger would find this event under this name."""
        where = "an event just written"
        opener = Opener(self._keys.sealing(L.EVENT), back, where, L.EVENT, self._repository)
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

    def _open(self, name: bytes, size: int) -> Event | str:
        """The event, or what is wrong with it."""
        path = f"events/{name.hex()}"
        if size > L.RECORD_LIMIT:
            return f"event {name.hex()[:8]} is damaged: too large"
        data = self._storage.read(path)
        try:
            if hashlib.sha256(data).digest() != name:
                raise Damaged("its bytes are not those it was named for")
            opener = Opener(self._keys.sealing(L.EVENT), data, path, L.EVENT, self._repository)
            return records.decode(Event, open_record(opener, data), path)
        except Damaged as error:
            return f"event {name.hex()[:8]} is damaged: {error}"

    def _fold(self) -> State:
        state = State(problems=[e for e in self._opened.values() if isinstance(e, str)])
        events = {name: e for name, e in self._opened.items() if isinstance(e, Event)}
        self._find_missing(events, state)
        named = {head.name for e in events.values() for head in e.heads}
        state.heads = tuple(
            sorted((Head(e.client, e.sequence, name) for name, e in events.items() if name not in named),
                   key=lambda h: (h.client, h.sequence, h.name))
        )  # fmt: skip
        state.sequence = max((e.sequence for e in events.values() if e.client == self._client.id), default=0)
        found: dict[bytes, StoredSnapshot] = {}
        forgotten: set[bytes] = set()
        tags: dict[bytes, tuple[bytes, ...]] = {}
        for name in _in_order(events):
            event, body = events[name], events[name].body
            if body.type in (records.EVENT_SNAPSHOT, records.EVENT_CHECKPOINT) and body.snapshot is not None:
                try:
                    snapshot = records.decode_snapshot(body.snapshot, f"events/{name.hex()[:8]}")
                except Damaged as error:
                    state.problems.append(str(error))
                    continue
                key = self._keys.snapshot_id(body.snapshot)
                found[key] = StoredSnapshot(key, snapshot, snapshot.tags, event.client)
            elif body.type == records.EVENT_TAGS:
                tags.update(dict.fromkeys(body.ids, body.tags))
            elif body.type == records.EVENT_FORGET:
                forgotten.update(body.ids)
            elif body.type == records.EVENT_UNDELETE:
                forgotten.difference_update(body.ids)
            elif body.type == records.EVENT_KEY_ADDED and body.ids and len(body.tags) == 3:
                label, host, user = (t.decode("utf-8", "replace") for t in body.tags)
                state.key_notes[body.ids[0]] = KeyNote(label, host, user, event.time)
        live = [s._replace(tags=tags.get(s.id, s.tags)) for s in found.values() if s.id not in forgotten]
        live.sort(key=lambda s: (s.record.time, s.id))
        state.forgotten = frozenset(forgotten)
        state.snapshots = [s for s in live if s.record.complete]
        state.checkpoints = [s for s in live if not s.record.complete]
        return state

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
        """The heads of now, and those that were here once and are missing: a rollback is said until it is undone or accepted."""
        lost = [head for head in self._seen() if head.name in state.missing]
        self._client.remember(heads=[*state.heads, *lost], accepted=state.accepted)

    def _seen(self) -> list[Head]:
        return [*self._client.remembered.heads, *self._client.predecessors]

    def _find_missing(self, events: dict[bytes, Event], state: State) -> None:
        accepted, missing = set(self._client.remembered.accepted), {}
        if not self._opened:  # the first is written before the config: without a config nobody gets here
            missing[b""] = (
                "there are no events at all: they were deleted, and with them the list of snapshots"
            )
        seen_by: dict[bytes, str] = {}
        for name, event in events.items():
            for head in event.heads:
                if head.name not in self._opened:
                    seen_by[head.name] = f"event {name.hex()[:8]} came after it"
        for head in self._seen():
            if head.name not in self._opened:
                seen_by[head.name] = "this machine has seen it here before"
        for name, why in sorted(seen_by.items()):
            missing[name] = (
                f"event {name.hex()[:8]} is missing, though {why}: files were deleted, "
                "or the repository was put back to an older state"
            )
        state.accepted = tuple(sorted(accepted & missing.keys()))
        state.missing = {name: why for name, why in missing.items() if name not in accepted}
        state.problems += state.missing.values()


def _in_order(events: dict[bytes, Event]) -> list[bytes]:
    """Names of events, each after all it had seen.  Iterative: a chain is as long as the repository is old."""
    depth: dict[bytes, int] = {}
    stack = list(events)
    on_path: set[bytes] = set()
    while stack:
        name = stack[-1]
        if name in depth:
            stack.pop()
            continue
        below = [h.name for h in events[name].heads if h.name in events]
        waiting = [b for b in below if b not in depth and b not in on_path]
        if waiting:
            on_path.add(name)
            stack += waiting
        else:
            depth[name] = 1 + max((depth.get(b, 0) for b in below), default=0)
            on_path.discard(name)
            stack.pop()
    return sorted(events, key=lambda name: (depth[name], events[name].time, name))

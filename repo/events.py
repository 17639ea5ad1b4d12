"""The clients' chains: publish an event, fold all events into the state of the repository.

Each event names the heads its writer had seen, so the events form a graph.  What they add up to does not depend on clocks: an
event counts after everything it had seen; among events that had not seen one another, time and name decide.  An event that
another one names and that is not there is damage or tampering, and is said.  Once the keys were changed, counting.py says which
events count: the others are as if they were not there, whoever made them.
"""

from __future__ import annotations

import errno
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from snapfs.repo.client import Client
from snapfs.repo.counting import NewerEvent, Rotation, as_rotation, came_before, counted
from snapfs.repo.doubts import Times, made, witness
from snapfs.repo.errors import Damaged, OldKeys, StorageError
from snapfs.repo.event_order import in_order
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import parse_header
from snapfs.repo.format.records import Event, EventBody, Head
from snapfs.repo.format.sealed import open_record, seal_record
from snapfs.repo.grants import Claim, admit, granted, open_claim
from snapfs.repo.keys import Keys
from snapfs.repo.model import Snapshot
from snapfs.repo.storage.base import Storage, hash_in
from snapfs.repo.system import System

_LISTED = 100_000
"""Names in one event of a change of keys, at most: it may have 4 MiB."""
_AGAIN_SECONDS = 60
"""A failing disk may take ten for each try."""


class StoredSnapshot(NamedTuple):
    """A snapshot as it stands now."""

    id: bytes
    record: Snapshot
    tags: tuple[bytes, ...]
    """As of now: tag events may have changed what the record says."""
    client: bytes
    backup_only: bool = False
    """A machine made it that can only back up: nobody else's earlier snapshot, and not to be trusted blindly."""

    @property
    def short(self) -> str:
        return self.id.hex()[:8]


class KeyNote(NamedTuple):
    """Who added a key slot, and when (ns)."""

    label: str
    host: str
    user: str
    time: int
    is_recovery: bool = False
    """Whether a recovery key opens it, and not a password that somebody chose."""
    epoch: int = 1
    """Of the newest keys in it."""
    backs_up: str | None = None
    """The host that it may back up, where it can do nothing else."""


@dataclass
class State:
    """What the events add up to."""

    snapshots: list[StoredSnapshot] = field(default_factory=list)
    """Complete and not forgotten, ascending by when they count as made."""
    checkpoints: list[StoredSnapshot] = field(default_factory=list)
    forgotten: frozenset[bytes] = frozenset()
    """Ids of snapshots that are not shown any more."""
    forgotten_snapshots: list[StoredSnapshot] = field(default_factory=list)
    """Those of them that are complete, in the same order: what an undelete may bring back."""
    unknown: int = 0
    """Events of types that this version does not know."""
    times: Times = field(default_factory=Times)
    """What is known of the times of snapshots besides what they state."""
    refused: dict[str, int] = field(default_factory=dict)
    """Why events of machines that can only back up do not count -> how many."""
    made: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Id -> when it counts as made (doubts.made)."""
    problems: list[str] = field(default_factory=list)
    """All that is wrong with the events; what is `missing` is among it."""
    missing: dict[bytes, str] = field(default_factory=dict)
    """Events that were here and are not (b"": all of them), and how that is known; without those whose loss was accepted."""
    accepted: tuple[bytes, ...] = ()
    """Names of missing events whose loss was accepted on this machine."""
    key_notes: dict[bytes, KeyNote] = field(default_factory=dict)
    heads: tuple[Head, ...] = ()
    newer: int = 0
    """Events that these keys do not open, but those that took their place."""
    late: int = 0
    """Events that do not count: sealed with keys that had been changed when they came."""
    rotations: list[Rotation] = field(default_factory=list)
    """Each time that the keys were changed, in order."""
    closed: Rotation | None = None
    """The keys that this process has were changed: nothing that they seal from then on counts."""
    listed: frozenset[bytes] = frozenset()
    """Names of events and volumes that were there when the keys were changed last."""
    notices: list[str] = field(default_factory=list)
    """What is to be said of all this, and is no damage."""
    sequence: int = 0
    """The highest sequence number of this client."""


def refused_events(refused: Mapping[str, int]) -> str:
    """What is said of them, in one line."""
    why = "; ".join(f"{number}: {why}" for why, number in sorted(refused.items()))
    return f"{sum(refused.values())} events that were sealed with a key that can only back up do not count ({why})"


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
        self._opened: dict[bytes, Event | Claim | NewerEvent | str] = {}
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

    def _known(self, name: bytes, again: bool) -> Event | Claim | NewerEvent | str | None:
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
            raise OldKeys(f"nothing was written: {_changed(closed)}")

    def publish(self, body: EventBody) -> bytes:
        """Append an event to this client's chain: the commit of whatever it says.  Returns its name.

        Raises OldKeys if the keys were changed before, or at this moment on another machine: then it may not count.
        """
        self.refuse_old_keys()
        name = self._append(body)
        state = self._load()
        if state.closed is not None and name not in came_before(self._counted, self._closing()):
            raise OldKeys(f"what was just written may not count: {_changed(state.closed)}")
        return name

    def close_epoch(
        self, volumes: Sequence[bytes], host: str, user: str
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Say that the keys are changed, and what there is of events and `volumes` (names): nothing that comes later under these
        keys counts.  Returns the names of the events that say so, and of the heads before them.

        Raises StorageError where an event cannot be read: it is not among those that there are, and would never count again.
        Who published at this moment is taken up: afterwards these events have seen all there are.
        """
        who = (host.encode("utf-8", "replace"), user.encode("utf-8", "replace"))
        state = self.load()
        if state.problems:
            raise StorageError(
                f"{state.problems[0]}: it would never count again, so the keys were not changed; bring it back from a copy of "
                "the repository, or take its file out of events/"
            )
        before = tuple(head.name for head in state.heads)
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

    def _open(self, name: bytes, size: int) -> Event | Claim | NewerEvent | str:
        """The event, or what is wrong with it."""
        path = f"events/{name.hex()}"
        if size > L.RECORD_LIMIT:
            return f"event {name.hex()[:8]} is damaged: too large"
        try:
            data = self._read(path, name)
            opener = self._keys.opener(L.EVENT, data, path, self._repository)
            self._epochs[name] = opener.epoch
            if opener.wrap == L.WRAP_BACKUP_ONLY:
                return open_claim(opener, data, path)
            return records.decode(Event, open_record(opener, data), path)
        except OldKeys:
            return NewerEvent(parse_header(data, path).epoch)
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
        state = State(problems=[e for e in self._opened.values() if isinstance(e, str)])
        opened = {name: e for name, e in self._opened.items() if isinstance(e, Event)}
        claims = {name: e for name, e in self._opened.items() if isinstance(e, Claim)}
        opened |= {name: claim.event for name, claim in claims.items() if claim.event is not None}
        events, state.listed = counted(opened, self._epochs, self._keys, claims)
        state.late = len(opened) - len(events)
        unread = {name for name, claim in claims.items() if claim.event is None}
        unread = {n for n in unread if self._epochs[n] == self._keys.epoch or n in state.listed}
        claims = {name: claim for name, claim in claims.items() if name in events or name in unread}
        events = {name: event for name, event in events.items() if name not in claims}
        admitted = admit(claims, events, in_order(events) if claims else (), self._verified)
        state.refused, state.unknown = admitted.refused, admitted.newer
        if admitted.refused:
            state.notices.append(refused_events(admitted.refused))
        events |= admitted.events
        self._counted = events
        self._find_missing(events, state)
        named = {head.name for e in events.values() for head in e.heads}
        state.heads = tuple(
            sorted((Head(e.client, e.sequence, name) for name, e in events.items() if name not in named),
                   key=lambda h: (h.client, h.sequence, h.name))
        )  # fmt: skip
        # Its last event may be damaged: no number is given twice.
        numbers = [(e.client, e.sequence) for e in opened.values()]
        numbers += [(head.client, head.sequence) for head in self._seen()]
        state.sequence = max((number for client, number in numbers if client == self._client.id), default=0)
        found: dict[bytes, StoredSnapshot] = {}
        forgotten: set[bytes] = set()
        tags: dict[bytes, tuple[bytes, ...]] = {}
        brought: dict[bytes, bytes] = {}
        order = in_order(events)
        for name in order:
            event, body = events[name], events[name].body
            if body.type in (records.EVENT_SNAPSHOT, records.EVENT_CHECKPOINT) and body.snapshot is not None:
                try:
                    snapshot = records.decode_snapshot(body.snapshot, f"events/{name.hex()[:8]}")
                except Damaged as error:
                    state.problems.append(str(error))
                    continue
                key = self._keys.snapshot_id(body.snapshot)
                brought[name] = key
                if name in admitted.events and key in found:
                    continue  # whose it is does not change because somebody says it again
                found[key] = StoredSnapshot(
                    key, snapshot, snapshot.tags, event.client, name in admitted.events
                )
            elif body.type == records.EVENT_TAGS:
                tags.update(dict.fromkeys(body.ids, body.tags))
            elif body.type == records.EVENT_FORGET:
                forgotten.update(body.ids)
            elif body.type == records.EVENT_UNDELETE:
                forgotten.difference_update(body.ids)
            elif body.type == records.EVENT_KEY_ADDED and body.ids and len(body.tags) >= 3:
                label, host, user = (t.decode("utf-8", "replace") for t in body.tags[:3])
                may = granted(body)
                state.key_notes[body.ids[0]] = KeyNote(
                    label, host, user, event.time, records.KEY_RECOVERY in body.tags[3:4],
                    self._epochs[name], None if may is None else may[1].host.decode("utf-8", "replace"),
                )  # fmt: skip
            elif (rotation := as_rotation(event, self._epochs[name])) is not None:
                state.rotations.append(rotation)
            state.unknown += body.type not in records.EVENT_TYPES
        stated = {key: s.record.time for key, s in found.items()}
        now = self._system.now()
        state.times = witness(self._client, events, order, brought, stated, self._published, now)
        state.made = made(stated, state.times, now)
        everything = [s._replace(tags=tags.get(s.id, s.tags)) for s in found.values()]
        everything.sort(key=lambda s: (state.made[s.id], s.id))
        live = [s for s in everything if s.id not in forgotten]
        state.forgotten = frozenset(forgotten)
        state.forgotten_snapshots = [s for s in everything if s.id in forgotten and s.record.complete]
        state.snapshots = [s for s in live if s.record.complete]
        state.checkpoints = [s for s in live if not s.record.complete]
        state.closed = next((r for r in state.rotations if r.epoch == self._keys.epoch), None)
        self._say_of_keys(state)
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

    def _say_of_keys(self, state: State) -> None:
        newer = sorted(name for name, event in self._opened.items() if isinstance(event, NewerEvent))
        state.newer = len(newer)
        if state.closed is not None:
            state.notices.append(f"{_changed(state.closed)}; what came since is not shown")
        elif newer:
            state.problems.append(
                f"event {newer[0].hex()[:8]} (and {len(newer) - 1} more) is sealed with newer keys than this password opens: "
                "what it says is not known; use a password that was made since"
            )
        if state.late:
            state.notices.append(
                f"{state.late} events do not count: they came after the keys that sealed them were changed, from somebody who "
                "kept an old password or key slot"
            )

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
        for name in (*self._keys.rotations, *self._keys.before_rotations):
            if name not in self._opened:
                seen_by[name] = "the key slots name it"
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


def _changed(rotation: Rotation) -> str:
    when = time.strftime("%Y-%m-%d", time.localtime(rotation.time / 1e9))
    return (
        f"the keys of this repository were changed on {when} ({rotation.host or 'host unknown'}), and this password opens the "
        "old ones: use one that was made since; if that `snapfs key rotate` was cut off, run it again"
    )

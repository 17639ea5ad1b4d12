"""Folds the events of a repository into what they add up to.

Each event names the heads its writer had seen, so the events form a graph.  What they add up to does not depend on clocks: an
event counts after everything it had seen; among events that had not seen one another, time and name decide.  An event that
another one names and that is not there is damage or tampering, and is said.  Once the keys were changed, counting.py says which
events count, and grants.py which of machines that can only back up: the others are as if they were not there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

from snapfs.repo.client import Client
from snapfs.repo.counting import NewerEvent, Rotation, as_rotation, counted
from snapfs.repo.doubts import made, witness
from snapfs.repo.errors import Damaged
from snapfs.repo.event_order import in_order
from snapfs.repo.format import records
from snapfs.repo.format.records import Event, Head
from snapfs.repo.grants import Admitted, Claim, admit, granted, made_of
from snapfs.repo.keys import Keys
from snapfs.repo.state import KeyNote, State, StoredSnapshot, refused_events

Opened = Event | Claim | NewerEvent | str
"""What an event's file is: the event; one that holds only if it was granted; one of newer keys; or what is wrong with it."""

_LAST = 2**63 - 1
"""The highest sequence number that is given."""


class Fold:
    """One fold: `state`, and `counted`: the events that count, by name."""

    def __init__(self, opened: Mapping[bytes, Opened], epochs: Mapping[bytes, int], keys: Keys, client: Client,
                 seen: Sequence[Head], published: Collection[bytes], verified: dict[tuple[bytes, bytes], bool],
                 now: int) -> None:  # fmt: skip
        """`epochs`: of the keys that opened each; `seen`: heads that this machine saw earlier; `published`: names of what this
        process published; `verified`: event and key -> whether the signature holds, kept from one fold to the next."""
        self._opened = opened
        self._epochs = epochs
        self._keys = keys
        self._client = client
        self._seen = seen
        self._published = published
        self._now = now
        self.state = State(problems=[e for e in opened.values() if isinstance(e, str)])
        admitted = self._count(verified)
        self._find_missing()
        self._find_heads()
        self._add_up(admitted)
        self._say_of_keys()

    def _count(self, verified: dict[tuple[bytes, bytes], bool]) -> Admitted:
        """Which events count; of those of machines that can only back up, what was admitted is returned."""
        state = self.state
        opened = {name: e for name, e in self._opened.items() if isinstance(e, Event)}
        claims = {name: e for name, e in self._opened.items() if isinstance(e, Claim)}
        opened |= {name: claim.event for name, claim in claims.items() if claim.event is not None}
        events, state.listed = counted(opened, self._epochs, self._keys, claims)
        state.late = len(opened) - len(events)
        unread = {name for name, claim in claims.items() if claim.event is None}
        unread = {n for n in unread if self._epochs[n] == self._keys.epoch or n in state.listed}
        claims = {name: claim for name, claim in claims.items() if name in events or name in unread}
        events = {name: event for name, event in events.items() if name not in claims}
        admitted = admit(claims, events, in_order(events) if claims else (), verified)
        state.refused, state.unknown = admitted.refused, admitted.newer
        if admitted.refused:
            state.notices.append(refused_events(admitted.refused))
        events |= admitted.events
        self.counted = events
        return admitted

    def _find_heads(self) -> None:
        state = self.state
        named = {head.name for e in self.counted.values() for head in e.heads}
        state.heads = tuple(
            sorted((Head(e.client, e.sequence, name) for name, e in self.counted.items() if name not in named),
                   key=lambda h: (h.client, h.sequence, h.name))
        )  # fmt: skip
        # Its last event may be damaged: no number is given twice.  What does not count may say any number, of anybody.
        numbers = [(e.client, e.sequence) for e in self.counted.values()]
        numbers += [(head.client, head.sequence) for head in self._seen]
        highest = max((number for client, number in numbers if client == self._client.id), default=0)
        state.sequence = min(highest, _LAST - 1)

    def _add_up(self, admitted: Admitted) -> None:
        state, events = self.state, self.counted
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
        if machines := {key for key, s in found.items() if s.backup_only}:
            parents = {key: s.record.parent for key, s in found.items()}
            found |= {key: found[key]._replace(backup_only=True) for key in made_of(machines, parents)}
        stated = {key: s.record.time for key, s in found.items()}
        state.times = witness(self._client, events, order, brought, stated, self._published, self._now)
        state.made = made(stated, state.times, self._now)
        everything = [s._replace(tags=tags.get(s.id, s.tags)) for s in found.values()]
        everything.sort(key=lambda s: (state.made[s.id], s.id))
        live = [s for s in everything if s.id not in forgotten]
        state.forgotten = frozenset(forgotten)
        state.forgotten_snapshots = [s for s in everything if s.id in forgotten and s.record.complete]
        state.snapshots = [s for s in live if s.record.complete]
        state.checkpoints = [s for s in live if not s.record.complete]
        state.closed = next((r for r in state.rotations if r.epoch == self._keys.epoch), None)

    def _find_missing(self) -> None:
        state = self.state
        accepted, missing = set(self._client.remembered.accepted), {}
        if not self._opened:  # the first is written before the config: without a config nobody gets here
            missing[b""] = (
                "there are no events at all: they were deleted, and with them the list of snapshots"
            )
        seen_by: dict[bytes, str] = {}
        for name, event in self.counted.items():
            for head in event.heads:
                if head.name not in self._opened:
                    seen_by[head.name] = f"event {name.hex()[:8]} came after it"
        for name in (*self._keys.rotations, *self._keys.before_rotations):
            if name not in self._opened:
                seen_by[name] = "the key slots name it"
        for head in self._seen:
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

    def _say_of_keys(self) -> None:
        state = self.state
        newer = sorted(name for name, event in self._opened.items() if isinstance(event, NewerEvent))
        state.newer = len(newer)
        if state.closed is not None:
            state.notices.append(f"{changed(state.closed)}; what came since is not shown")
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


def changed(rotation: Rotation) -> str:
    """What is said to who has the old keys."""
    when = time.strftime("%Y-%m-%d", time.localtime(rotation.time / 1e9))
    return (
        f"the keys of this repository were changed on {when} ({rotation.host or 'host unknown'}), and this password opens the "
        "old ones: use one that was made since; if that `snapfs key rotate` was cut off, run it again"
    )

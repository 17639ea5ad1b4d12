"""Which events count, once the keys that seal them were changed (docs/format.md, section 9).

Who has keys of an earlier epoch can make events of it for ever.  So these count only if an event of the newest epoch names them,
directly or through others, or if they were there at the change: the key slots name the event that says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from snapfs.repo.format import records
from snapfs.repo.format.records import Event
from snapfs.repo.keys import Keys


class NewerEvent(NamedTuple):
    """An event that these keys do not open: it is sealed with those that took their place."""

    epoch: int


class Rotation(NamedTuple):
    """A change of keys: when (ns), by whom, and the epoch that ended."""

    time: int
    host: str
    user: str
    epoch: int


def counted(
    events: Mapping[bytes, Event], epochs: Mapping[bytes, int], keys: Keys, claims: Collection[bytes] = ()
) -> tuple[dict[bytes, Event], frozenset[bytes]]:
    """Those of `events` that count; and the names of all events and volumes that were there when the keys were changed last.

    `epochs`: of which epoch are the keys that opened each.  `claims`: names of those among them that machines made which can only
    back up (grants.py): they vouch for nothing but each other.
    """
    if keys.epoch == 1:
        return dict(events), frozenset()
    listed = frozenset(
        name for rotation in keys.rotations if rotation in events for name in events[rotation].body.ids
    )
    newest = {name for name in events if epochs[name] == keys.epoch}
    waiting = [name for name in newest if name not in claims]
    waiting += [*keys.rotations, *keys.before_rotations, *listed]
    found: set[bytes] = set()
    while waiting:
        name = waiting.pop()
        if name in events and name not in found:
            found.add(name)
            waiting += [h.name for h in events[name].heads if name not in claims or h.name in claims]
    found |= newest  # claims, too: whether those hold is another question
    return {name: event for name, event in events.items() if name in found}, listed


def as_rotation(event: Event, epoch: int) -> Rotation | None:
    """What an event says of a change of keys; None if it is about something else."""
    if event.body.type != records.EVENT_KEYS_CHANGED:
        return None
    host, user = (text.decode("utf-8", "replace") for text in (*event.body.tags, b"", b"")[:2])
    return Rotation(event.time, host, user, epoch)


def came_before(events: Mapping[bytes, Event], names: Collection[bytes]) -> set[bytes]:
    """These events, those that they name, what these name, and so on."""
    found: set[bytes] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in events and name not in found:
            found.add(name)
            waiting += [head.name for head in events[name].heads]
    return found

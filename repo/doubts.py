"""Which snapshots state a time that this machine has reason to doubt.

A snapshot's time is what its writer says: his clock may be wrong, and whoever has the key can say anything.  What this machine
knows for itself is when it looked at the events, which were there then, and which of them came after which others.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from snapfs.repo.client import Client
from snapfs.repo.format.records import Event, Head

TOLERANCE = 24 * 3600 * 10**9
"""Ns that a time may be off: backups take hours, and clocks are set to the wrong time zone."""


_BEFORE_ALL = -(2**64)
"""Earlier than any snapshot, in ns."""


class Doubt(enum.Enum):
    """What speaks against the time that a snapshot states."""

    UNCONFIRMED = "unconfirmed"
    """It does not fit when this machine first saw the snapshot."""
    FUTURE = "future"
    """It has not come yet."""
    BEHIND = "behind"
    """Its writer's clock was behind that of a snapshot which was there before."""


class Times(NamedTuple):
    """What is known of the times of snapshots besides what they state; keys are their ids."""

    order: Mapping[bytes, int] = {}
    """Place in the order of events, of the first that brought it."""
    doubted: Mapping[bytes, int] = {}
    """When this machine first saw it (ns), of those whose time does not fit that."""
    behind: frozenset[bytes] = frozenset()
    """Those whose event says an earlier time than one it came after."""
    gaps: frozenset[bytes] = frozenset()
    """Names of events that were known and cannot be read: what came before them is not known by them."""

    def doubt(self, id: bytes, stated: int, now: int) -> Doubt | None:
        """What is to be said against the time (ns) that a snapshot states."""
        if id in self.doubted:
            return Doubt.UNCONFIRMED
        if stated > now + TOLERANCE:
            return Doubt.FUTURE
        return Doubt.BEHIND if id in self.behind else None


def made(stated: Mapping[bytes, int], times: Times, now: int) -> dict[bytes, tuple[int, int]]:
    """When each snapshot (id -> the time it states, ns) counts as made: (ns, number), to sort by.

    That is what it states.  But one that states a time more than a day to come, by this clock or when this machine first saw it,
    counts as made right after the last of those that came before it in the order of events: so it is the newest until the next
    one, and not for ever.
    """
    found: dict[bytes, tuple[int, int]] = {}
    believed = _BEFORE_ALL
    for key in sorted(stated, key=lambda key: times.order.get(key, 0)):
        time, place = stated[key], 0
        if times.doubt(key, time, now) not in (Doubt.UNCONFIRMED, Doubt.FUTURE):
            believed = max(believed, time)
        elif believed < time > min(now, times.doubted.get(key, now)) + TOLERANCE:
            time, place = believed, 1 + times.order.get(key, 0)
        found[key] = time, place
    return found


def witness(
    client: Client,
    events: Mapping[bytes, Event],
    order: Iterable[bytes],
    brought: Mapping[bytes, bytes],
    stated: Mapping[bytes, int],
    published: Collection[bytes],
    now: int,
) -> Times:
    """Look at the times of all snapshots, and closer at those that are new to this machine.

    `order`: names of the events, each after all that it names; `brought`: event -> id of the snapshot in it, in this order;
    `stated`: id -> its time; `published`: events of this process, which knows what they say.
    """
    seen, gaps = known(events, client.remembered.heads, published)
    if not seen.issuperset(events):
        client.refresh()  # another process of this client may have published, or seen, what is new here
        seen, gaps = known(events, client.remembered.heads, published)
    # Behind an event that is missing now, or damaged, lies what was known and cannot be told from what is new.
    looked = client.remembered.looked if gaps <= set(client.remembered.gaps) else 0
    # A record that is published again is no new snapshot: whoever does that must not cast doubt on it.
    familiar = {snapshot for name, snapshot in brought.items() if name in seen}
    said: dict[bytes, int] = {}
    """New snapshot -> the earliest time of an event that brings it."""
    for name, snapshot in brought.items():
        if snapshot not in familiar:
            said[snapshot] = min(said.get(snapshot, events[name].time), events[name].time)
    doubted = dict(client.remembered.doubted)
    for snapshot, time in said.items():
        if at_first_sight(stated[snapshot], time, now, looked):
            doubted.setdefault(snapshot, now)
    places = {snapshot: place for place, snapshot in enumerate(dict.fromkeys(brought.values()))}
    return Times(places, doubted, behind(events, order, brought, doubted, now), frozenset(gaps))


def known(
    events: Mapping[bytes, Event], heads: Iterable[Head], others: Iterable[bytes]
) -> tuple[set[bytes], set[bytes]]:
    """Names of the events that were there when these were the heads, and `others`: they, all that they name, what these
    name ...  And of those among them that are not in `events`."""
    found: set[bytes] = set()
    gaps: set[bytes] = set()
    waiting = [*(head.name for head in heads), *others]
    while waiting:
        name = waiting.pop()
        if name not in events:
            gaps.add(name)
        elif name not in found:
            found.add(name)
            waiting += [head.name for head in events[name].heads]
    return found, gaps


def at_first_sight(stated: int, published: int, seen: int, looked: int) -> bool:
    """Whether to doubt the time of a snapshot that is new to this machine; all in ns since 1970.

    `stated` is the snapshot's time, `published` that of its event, `seen` is now, and `looked` when this machine last looked
    and did not find it (0: never).  A `looked` after `seen` says that this clock is wrong, and nothing of the snapshot.
    """
    if max(stated, published) > seen + TOLERANCE:
        return True
    return 0 < looked <= seen and stated < looked - TOLERANCE


def behind(
    events: Mapping[bytes, Event],
    order: Iterable[bytes],
    brought: Mapping[bytes, bytes],
    doubted: Collection[bytes],
    now: int,
) -> frozenset[bytes]:
    """Ids of snapshots whose events all say an earlier time than another that they came after.

    Arguments as for witness().  Snapshots in `doubted`, and times that have not come yet, prove nothing against others.
    """
    latest: dict[bytes, int] = {}
    """Event -> the latest time that is to be believed in it and in all that it came after."""
    late: set[bytes] = set()
    sound: set[bytes] = set()
    for name in order:
        event, snapshot = events[name], brought.get(name)
        before = max((latest[head.name] for head in event.heads if head.name in latest), default=None)
        if snapshot is not None:
            is_late = before is not None and event.time < before - TOLERANCE
            (late if is_late else sound).add(snapshot)
        times = [] if before is None else [before]
        if snapshot is not None and snapshot not in doubted and event.time <= now + TOLERANCE:
            times.append(event.time)
        if times:
            latest[name] = max(times)
    return frozenset(late - sound)

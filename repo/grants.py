"""Which events count of those that machines sealed which can only back up.

A whole key grants: it announces a key slot with a client id, a verifying key and a host (KEY_ADDED).  An event that was sealed
with public keys counts if its client was granted that, the signature holds, and it brings a snapshot or checkpoint of that host:
nothing else that it says is heard.  When a whole key removes the slot (KEY_REMOVED), what the remover had seen still counts, and
nothing that comes later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from snapfs.repo.errors import Damaged, UnsupportedFormat
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.crypto import verifies
from snapfs.repo.format.envelope import Opener
from snapfs.repo.format.recipient import signed_message
from snapfs.repo.format.records import Event, Signed
from snapfs.repo.format.sealed import open_record

T = TypeVar("T")


class Claim(NamedTuple):
    """An event that holds only if it was granted."""

    event: Event | None
    """None: of a newer version."""
    message: bytes
    """What the signature is over."""
    signature: bytes
    client: bytes = b""
    """Who it says it is of, where the event is of a newer version too."""


class Grant(NamedTuple):
    slot: bytes
    """Name of the key slot (32 bytes)."""
    key: bytes
    """That verifies."""
    host: bytes


class Admitted(NamedTuple):
    events: dict[bytes, Event]
    """By name: what counts of the claims."""
    refused: dict[str, int]
    """Why -> how many."""
    newer: int
    """Events that are granted and signed, and say what this version does not know."""


def open_claim(opener: Opener, data: bytes, where: str) -> Claim:
    """Raises Damaged, also for what no machine of a user can have meant."""
    signed = _decode(Signed, open_record(opener, data), where)
    if signed is None:
        raise Damaged("a signed event of an unknown version", where)
    message = signed_message(opener.header, signed.record)
    event = _decode(Event, signed.record, where)
    return Claim(event, message, signed.signature, _client(signed.record) if event is None else event.client)


def _decode(kind: type[T], data: bytes, where: str) -> T | None:
    """None for a newer version: whoever can write such an event must not be able to stop every reader by it."""
    try:
        return records.decode(kind, data, where)
    except UnsupportedFormat:
        return None


def _client(record: bytes) -> bytes:
    """The second field of an event of any version; nothing if it is none."""
    return records.second_field(record)


def admit(
    claims: Mapping[bytes, Claim],
    events: Mapping[bytes, Event],
    order: Iterable[bytes],
    verified: dict[tuple[bytes, bytes], bool],
) -> Admitted:
    """`events`: those of whole keys by name; `order`: their names as they count; `verified`: by name and key, whether signatures
    hold, kept between calls since each takes a tenth of a millisecond."""
    result = Admitted({}, {}, 0)
    if not claims:
        return result
    grants: dict[bytes, list[Grant]] = defaultdict(list)
    removed: dict[bytes, list[bytes]] = defaultdict(list)
    for name in order:
        body = events[name].body
        found = granted(body)
        if found is not None:
            grants[found[0]].append(found[1])
        elif body.type == records.EVENT_KEY_REMOVED and body.ids:
            removed[body.ids[0]].append(name)
    everything = {
        **events,
        **{name: claim.event for name, claim in claims.items() if claim.event is not None},
    }
    seen = {slot: _seen_by_first(names, everything) for slot, names in removed.items()}
    newer = 0
    for name, claim in claims.items():
        fitting = [
            grant for grant in grants.get(claim.client, ()) if _holds(name, claim, grant.key, verified)
        ]
        why, is_newer = _judge(name, claim, fitting, seen, events, claims)
        newer += is_newer
        if why is None:
            assert claim.event is not None
            result.events[name] = claim.event
        elif not is_newer:
            result.refused[why] = result.refused.get(why, 0) + 1
    return result._replace(newer=newer)


def granted(body: records.EventBody) -> tuple[bytes, Grant] | None:
    """(client id, what it may) if this event grants something."""
    if body.type != records.EVENT_KEY_ADDED or body.tags[3:4] != (records.KEY_BACKUP_ONLY,):
        return None
    if (
        len(body.ids) < 3
        or len(body.tags) < 5
        or len(body.ids[1]) != L.CLIENT_SIZE
        or len(body.ids[2]) != L.PUBLIC_KEY_SIZE
    ):
        return None
    return body.ids[1], Grant(body.ids[0], body.ids[2], body.tags[4])


def made_of(origins: Iterable[bytes], parents: Mapping[bytes, bytes | None]) -> set[bytes]:
    """Ids of the snapshots that were made of one of these (repaired, or gone on from it), or of one that was; `parents`: of all
    by id.  They have in them what nobody vouches for."""
    children: dict[bytes, list[bytes]] = defaultdict(list)
    for child, parent in parents.items():
        if parent is not None:
            children[parent].append(child)
    found: set[bytes] = set()
    waiting = list(origins)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def _holds(name: bytes, claim: Claim, key: bytes, verified: dict[tuple[bytes, bytes], bool]) -> bool:
    if (name, key) not in verified:
        verified[name, key] = verifies(key, claim.message, claim.signature)
    return verified[name, key]


def _judge(
    name: bytes,
    claim: Claim,
    fitting: list[Grant],
    seen: Mapping[bytes, set[bytes]],
    events: Mapping[bytes, Event],
    claims: Mapping[bytes, Claim],
) -> tuple[str | None, bool]:
    """(why it does not count, whether that is because this version does not know what it says)."""
    if not fitting:
        return "nobody granted that, or the signature does not hold", False
    hosts = [g.host for g in fitting if g.slot not in seen or name in seen[g.slot]]
    if not hosts:
        return "its key was removed before", False
    if claim.event is None:
        return "", True
    body, client = claim.event.body, claim.client
    if any(
        h.client != client or h.name in events or (h.name in claims and claims[h.name].client != client)
        for h in claim.event.heads
    ):
        return "it names events that are not of its own chain", False
    if body.type not in records.EVENT_TYPES:
        return "", True
    if body.type not in (records.EVENT_SNAPSHOT, records.EVENT_CHECKPOINT) or body.snapshot is None:
        return "such a key may add snapshots and do nothing else", False
    try:
        snapshot = records.decode_snapshot(body.snapshot, "")
    except UnsupportedFormat:
        return "", True
    except Damaged:
        return "what it brings is no snapshot", False
    if snapshot.host not in hosts:
        return "its snapshot is said to be of another host", False
    if snapshot.complete != (body.type == records.EVENT_SNAPSHOT):
        return "what it brings is no snapshot", False
    return None, False


def _seen_by_first(removals: list[bytes], events: Mapping[bytes, Event]) -> set[bytes]:
    """Names of the events that came before a removal of a slot, of those removals that had seen no other."""
    before = {name: _before(name, events) for name in removals}
    return set[bytes]().union(*(seen for seen in before.values() if seen.isdisjoint(removals)))


def _before(name: bytes, events: Mapping[bytes, Event]) -> set[bytes]:
    """All that an event names, directly or through others."""
    found: set[bytes] = set()
    waiting = [head.name for head in events[name].heads]
    while waiting:
        at = waiting.pop()
        if at not in found:
            found.add(at)
            if at in events:
                waiting += [head.name for head in events[at].heads]
    return found

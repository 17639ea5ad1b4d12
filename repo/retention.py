"""What a policy keeps, and why: pure functions over lists of snapshots, without clock and storage.

The rules are restic's.  Of each group, the newest snapshot first, each rule takes the last snapshot of so many hours, days ...
in which there is one; what any rule takes is kept.  Periods are those of one time zone, the local one by default.

Times that are in doubt (repo.doubts) must not push others out.  So the policy is applied to all snapshots of a group by the
times they state; and once more to those whose time nothing speaks against, and to each kind of the others by itself.  What is
kept by any of these is kept.  Where nothing is in doubt, they are all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, NamedTuple

from snapfs.repo.doubts import Doubt, Times
from snapfs.repo.errors import UsageError
from snapfs.repo.select import Key, grouped

if TYPE_CHECKING:
    from snapfs.repo.state import StoredSnapshot

UNLIMITED = -1
SECOND = 10**9
_DURATION = re.compile(r"(?:[0-9]{1,9}[ymdh])+")
_EVER = -(2**64)
"""Earlier than any snapshot, in ns."""

_FIRST, _LAST = datetime(1, 1, 1), datetime(9999, 12, 31, 23)  # noqa: DTZ001 - local, whatever the zone is

PERIODS: Mapping[str, Callable[[datetime], tuple[int, ...]]] = {
    "hourly": lambda at: (at.year, at.month, at.day, at.hour),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: (at.year,),
}


class Duration(NamedTuple):
    """Years and months are those of the calendar, days and hours too where the clocks change."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    def __str__(self) -> str:
        return "".join(f"{number}{unit}" for number, unit in zip(self, "ymdh", strict=True) if number)


NO_TIME = Duration()


def parse_duration(text: str) -> Duration:
    """1y2m3d4h: years, months, days, hours, each once at most.  Raises UsageError."""
    parts = re.findall(r"([0-9]+)([ymdh])", text)
    units = {unit: int(number) for number, unit in parts}
    if not _DURATION.fullmatch(text) or len(units) < len(parts):
        raise UsageError(
            f"{text!r} is not a duration: give years, months, days and hours, as in 1y6m14d12h (a week is 7d)"
        )
    return Duration(*(units.get(unit, 0) for unit in "ymdh"))


def parse_count(text: str) -> int:
    """A number of snapshots; UNLIMITED for "unlimited" and -1.  Raises UsageError."""
    if text in ("unlimited", "-1"):
        return UNLIMITED
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{text!r} is not a number of snapshots: give 0, 1, 2 ... or unlimited")
    return int(text)


@dataclass(frozen=True)
class Policy:
    """What to keep; what no rule keeps is removed."""

    last: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    """A word of PERIODS -> how many of them; UNLIMITED: all."""
    within: Duration = NO_TIME
    within_each: Mapping[str, Duration] = field(default_factory=dict)
    """A word of PERIODS -> one for each of them that lies within this time before the newest."""
    tags: tuple[frozenset[bytes], ...] = ()
    """Snapshots that have all tags of one of these.  The empty set: those without tags."""

    def __bool__(self) -> bool:
        return bool(
            self.last or any(self.counts.values()) or any(self.within) or any(map(any, self.within_each.values())) or self.tags
        )  # fmt: skip

    def smart(self) -> Policy:
        """At least one for each of the last 7 days, 4 weeks and 12 months of which there are snapshots."""
        counts = dict(self.counts)
        for period, number in (("daily", 7), ("weekly", 4), ("monthly", 12)):
            if counts.get(period, 0) != UNLIMITED:
                counts[period] = max(counts.get(period, 0), number)
        return Policy(self.last, counts, self.within, self.within_each, self.tags)


class Decision(NamedTuple):
    """What becomes of one snapshot."""

    snapshot: StoredSnapshot
    reasons: tuple[str, ...]
    """Why it is kept ("daily snapshot"); none: it is to be removed."""
    doubt: Doubt | None = None
    """What speaks against its time."""


class Group(NamedTuple):
    key: Key
    decisions: tuple[Decision, ...]
    """By the times they state, the newest first."""

    @property
    def keep(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.reasons]

    @property
    def remove(self) -> list[Decision]:
        return [decision for decision in self.decisions if not decision.reasons]


def plan(
    snapshots: Iterable[StoredSnapshot],
    policy: Policy,
    words: Sequence[str],
    times: Times,
    now: int,
    zone: tzinfo | None = None,
) -> list[Group]:
    """Apply a policy to each group of snapshots (select.grouped); `zone` None: the local one.

    Raises UsageError for a policy that would keep nothing of a group.
    """
    groups = []
    for key, members in grouped(snapshots, words):
        decisions = decide(members, policy, times, now, zone)
        if not any(decision.reasons for decision in decisions):
            named = "; ".join(f"{word} {_listed(part)}" for word, part in zip(words, key, strict=True))
            raise UsageError(
                f"this would remove every snapshot of {named or 'all'}, so nothing was forgotten: keep at least the last one "
                "(--keep-last 1), or name what should go by its id"
            )
        groups.append(Group(key, decisions))
    return groups


def plan_without_policy(snapshots: Iterable[StoredSnapshot]) -> Group:
    """All of them go."""
    return Group((), tuple(Decision(snapshot, ()) for snapshot in reversed(list(snapshots))))


def days(groups: Iterable[Group], zone: tzinfo | None = None) -> tuple[int, int]:
    """On how many days there are snapshots by the times they state: now, and among those that are kept."""
    now, kept = set(), set()
    for decision in (decision for group in groups for decision in group.decisions):
        day = _local(decision.snapshot.record.time, zone).date()
        now.add(day)
        if decision.reasons:
            kept.add(day)
    return len(now), len(kept)


def decide(
    snapshots: Iterable[StoredSnapshot], policy: Policy, times: Times, now: int, zone: tzinfo | None = None
) -> tuple[Decision, ...]:
    """Apply a policy to one group.  Newest first."""
    newest_first = sorted(snapshots, key=lambda s: (s.record.time, times.order.get(s.id, 0)), reverse=True)
    doubt = {s.id: times.doubt(s.id, s.record.time, now) for s in newest_first}
    reasons = _apply(newest_first, policy, now, zone)
    for kind in dict.fromkeys(doubt.values()) if any(doubt.values()) else ():
        some = [s for s in newest_first if doubt[s.id] is kind]
        if kind is not None:
            some.sort(key=lambda s: times.order.get(s.id, 0), reverse=True)
        for snapshot, found in _apply(some, policy, now, zone, kind is not None).items():
            also = "not counting times in doubt" if kind is None else "among those with a time in doubt"
            known = reasons[snapshot]
            reasons[snapshot] = known + [f"{one}, {also}" for one in found if one not in known]
    return tuple(Decision(s, tuple(reasons[s.id]), doubt[s.id]) for s in newest_first)


def _apply(
    newest_first: Sequence[StoredSnapshot],
    policy: Policy,
    now: int,
    zone: tzinfo | None,
    by_order: bool = False,
) -> dict[bytes, list[str]]:
    """Snapshot id -> why it is kept.  `by_order`: the first one is the newest, whatever the times are."""
    if by_order:
        newest = newest_first[0].record.time
    else:  # as in restic, durations are not measured from a time that has not come
        newest = max((s.record.time for s in newest_first if s.record.time < now), default=_EVER)
    left = {period: number for period, number in [("last", policy.last), *policy.counts.items()] if number}
    since = {period: _before(newest, d, zone) for period, d in policy.within_each.items() if any(d)}
    since_all = _before(newest, policy.within, zone) if any(policy.within) else None
    counted: dict[str, object] = {}
    counted_within: dict[str, object] = {}
    reasons: dict[bytes, list[str]] = {}
    for place, snapshot in enumerate(newest_first):
        found = reasons[snapshot.id] = []
        time = snapshot.record.time
        at = _local(time, zone)
        is_oldest = place == len(newest_first) - 1
        found += [f"has tags [{_listed(tags)}]" for tags in policy.tags if _has(snapshot, tags)]
        if since_all is not None and time > since_all:
            found.append(f"within {policy.within}")
        for period, number in left.items():
            value: object = place if period == "last" else PERIODS[period](at)
            is_new = counted.get(period) != value
            # While a rule has counts left, the oldest snapshot is kept too, so that history is as long as it can be.
            if number and (is_new or is_oldest):
                counted[period] = value
                left[period] = number if number == UNLIMITED else number - 1
                found.append(f"{'' if is_new else 'oldest '}{period} snapshot")
        for period, earliest in since.items():
            value = PERIODS[period](at)
            is_new = counted_within.get(period) != value
            if time > earliest and (is_new or is_oldest):
                counted_within[period] = value
                found.append(f"{'' if is_new else 'oldest '}{period} within {policy.within_each[period]}")
    return reasons


def _has(snapshot: StoredSnapshot, tags: frozenset[bytes]) -> bool:
    return tags <= set(snapshot.tags) if tags else not snapshot.tags


def _listed(names: Iterable[bytes]) -> str:
    return ", ".join(sorted(name.decode("utf-8", "backslashreplace") for name in names))


def _local(time: int, zone: tzinfo | None) -> datetime:
    """Without a zone; years that datetime does not know are its first or last."""
    try:
        return datetime.fromtimestamp(time // SECOND, zone).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return _FIRST if time < 0 else _LAST


def _before(time: int, duration: Duration, zone: tzinfo | None) -> int:
    """So much earlier, by the calendar; a day that a month does not have is one of the next (31 March less 1m: 3 March)."""
    at = _local(time, zone)
    year, month = divmod(at.year * 12 + at.month - 1 - 12 * duration.years - duration.months, 12)
    try:
        first = at.replace(year=year, month=month + 1, day=1)
        day = first + timedelta(days=at.day - 1 - duration.days)
        seconds = int(day.replace(tzinfo=zone).timestamp()) - 3600 * duration.hours
    except (OverflowError, ValueError, OSError):
        return _EVER
    return seconds * SECOND + time % SECOND

"""What a policy keeps: restic's rules and its documented examples, and that times in doubt push nothing out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.repo.doubts import TOLERANCE, Times
from snapfs.repo.errors import UsageError
from snapfs.repo.model import Node, NodeType, Snapshot, Totals
from snapfs.repo.retention import (
    NO_TIME,
    PERIODS,
    SECOND,
    UNLIMITED,
    Decision,
    Duration,
    Policy,
    decide,
    parse_count,
    parse_duration,
    plan,
)
from snapfs.repo.select import parse_tags
from snapfs.repo.state import StoredSnapshot

ROOT = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0)
NOW = int(datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()) * SECOND
NO_TIMES = Times()


def at(text: str) -> int:
    """ns of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND


def made(
    number: int, time: int, *tags: bytes, host: bytes = b"h", paths: Sequence[bytes] = (b"/a",)
) -> StoredSnapshot:
    record = Snapshot(1, ROOT, time, host, b"u", tuple(paths), tags, Totals(), True, 0, 0, (), (), b"p")
    return StoredSnapshot(number.to_bytes(32, "big"), record, tags, bytes(16))


def all_of(times: Sequence[str | int]) -> list[StoredSnapshot]:
    return [made(n, at(time) if isinstance(time, str) else time) for n, time in enumerate(times)]


def kept(decisions: Sequence[Decision]) -> list[str]:
    """The times of those that are kept, the oldest first."""
    found = [d.snapshot.record.time for d in decisions if d.reasons]
    return [datetime.fromtimestamp(time // SECOND, UTC).isoformat(" ")[:16] for time in reversed(found)]


def apply(
    snapshots: Sequence[StoredSnapshot], policy: Policy, times: Times = NO_TIMES
) -> tuple[Decision, ...]:
    return decide(snapshots, policy, times, NOW, UTC)


# ---- what restic's manual says -----------------------------------------------------------------------------------------

SUNDAYS = [f"{datetime(2019, 9, 1, 11, tzinfo=UTC) + timedelta(weeks=n):%Y-%m-%d %H:%M}" for n in range(12)]


def test_the_last_four_days_of_which_there_are_snapshots() -> None:
    decisions = apply(all_of(SUNDAYS), Policy(counts={"daily": 4}))
    assert kept(decisions) == ["2019-10-27 11:00", "2019-11-03 11:00", "2019-11-10 11:00", "2019-11-17 11:00"]
    assert {d.reasons for d in decisions if d.reasons} == {("daily snapshot",)}


def test_a_backup_every_day_for_a_hundred_years() -> None:
    days = [at("1920-01-01 10:00") + n * 86_400 * SECOND for n in range(36_525)]
    policy = Policy(counts={"daily": 7, "weekly": 5, "monthly": 12, "yearly": 75})
    decisions = apply(all_of(days), policy)
    by_reason = {
        period: sum(any(period in reason for reason in d.reasons) for d in decisions)
        for period in policy.counts
    }
    assert by_reason == {"daily": 7, "weekly": 5, "monthly": 12, "yearly": 75}
    # the newest counts for all four; others may be two of them
    assert 7 + 4 + 10 + 73 <= len(kept(decisions)) <= 7 + 4 + 12 + 75
    assert kept(decisions)[-1] == "2019-12-31 10:00"


def test_within_is_measured_from_the_latest() -> None:
    times = [
        "2020-01-31 09:00",
        "2022-06-23 08:59",
        "2022-06-23 09:01",
        "2023-12-01 00:00",
        "2024-11-30 12:00",
    ]
    policy = Policy(within=parse_duration("2y5m7d3h"))
    assert kept(apply(all_of(times), policy)) == ["2022-06-23 09:01", "2023-12-01 00:00", "2024-11-30 12:00"]


def test_within_ignores_what_lies_in_the_future() -> None:
    times = ["2026-11-01 12:00", "2026-11-25 12:00", "2031-01-01 12:00"]
    decisions = apply(all_of(times), Policy(within=parse_duration("2d")))
    assert kept(decisions) == ["2026-11-25 12:00", "2031-01-01 12:00"]


def test_the_oldest_is_kept_while_counts_are_left() -> None:
    times = ["2024-01-01 08:00", "2024-01-01 09:00", "2024-01-01 10:00"]
    decisions = apply(all_of(times), Policy(counts={"daily": 5}))
    assert kept(decisions) == ["2024-01-01 08:00", "2024-01-01 10:00"]
    assert decisions[-1].reasons == ("oldest daily snapshot",)
    assert kept(apply(all_of(times), Policy(counts={"daily": 1}))) == ["2024-01-01 10:00"]


def test_tags() -> None:
    snapshots = [made(0, 1), made(1, 2, b"a"), made(2, 3, b"a", b"b"), made(3, 4, b"b")]

    def numbers(*texts: bytes) -> list[int]:
        decisions = apply(snapshots, Policy(tags=parse_tags(texts)))
        return sorted(d.snapshot.record.time - 1 for d in decisions if d.reasons)

    assert numbers(b"a") == [1, 2]
    assert numbers(b"a,b") == [2]
    assert numbers(b"a", b"b") == [1, 2, 3]
    assert numbers(b"") == [0]


@pytest.mark.parametrize(
    ("before", "duration", "after"),
    [
        ("2023-03-31 12:00", "1m", "2023-03-03 12:00"),  # 31 February, as Go's AddDate takes it
        ("2024-03-31 12:00", "1m", "2024-03-02 12:00"),
        ("2024-02-29 12:00", "1y", "2023-03-01 12:00"),
        ("2024-01-15 12:00", "13m", "2022-12-15 12:00"),
        ("2024-01-15 12:00", "15d13h", "2023-12-30 23:00"),
    ],
)
def test_durations_go_by_the_calendar(before: str, duration: str, after: str) -> None:
    edge = at(after)
    policy = Policy(within=parse_duration(duration))
    assert len(kept(apply(all_of([edge, at(before)]), policy))) == 1
    assert len(kept(apply(all_of([edge + 1, at(before)]), policy))) == 2


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("1y2m3d4h", Duration(1, 2, 3, 4)),
        ("4h1y", Duration(1, 0, 0, 4)),
        ("0d", Duration()),
        ("7d", Duration(0, 0, 7)),
    ],
)
def test_durations_are_read(text: str, duration: Duration) -> None:
    assert parse_duration(text) == duration
    assert not any(duration) or parse_duration(str(duration)) == duration


@pytest.mark.parametrize(
    "text", ["", "1", "1w", "-1d", "1d2d", "1 d", "d", "1.5d", "unlimited", "1D", "9" * 20 + "d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)


def test_counts_are_read() -> None:
    assert [parse_count(text) for text in ("0", "12", "unlimited", "-1")] == [0, 12, UNLIMITED, UNLIMITED]
    for text in ("", "-2", "x", "1.0", "9" * 30):
        with pytest.raises(UsageError):
            parse_count(text)


# ---- against another way of saying the same ------------------------------------------------------------------------------

moments = st.integers(at("2022-12-20 00:00") // SECOND, at("2025-01-10 00:00") // SECOND).map(
    lambda s: s * SECOND
)
near = st.integers(at("2024-12-28 00:00") // SECOND, at("2025-01-02 00:00") // SECOND).map(
    lambda s: s * SECOND
)
numbers = st.sampled_from([0, 1, 2, 3, 7, UNLIMITED])
durations = st.builds(Duration, st.integers(0, 2), st.integers(0, 13), st.integers(0, 40), st.integers(0, 30))
policies = st.builds(
    Policy, numbers, st.dictionaries(st.sampled_from(list(PERIODS)), numbers), st.just(NO_TIME) | durations,
    st.dictionaries(st.sampled_from(list(PERIODS)), durations, max_size=2),
    st.sampled_from([(), (frozenset({b"a"}),), (frozenset(),)]),
)  # fmt: skip
lists = st.lists(st.tuples(moments | near, st.booleans()), max_size=30, unique_by=lambda pair: pair[0]).map(
    lambda pairs: [made(n, time, *([b"a"] if tagged else [])) for n, (time, tagged) in enumerate(pairs)]
)
patient = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
zones = st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-11, minutes=-30))])


def by_sets(snapshots: Sequence[StoredSnapshot], policy: Policy, zone: timezone) -> set[bytes]:
    """A policy as sets: the last of each of so many periods, taken by grouping."""
    ordered = sorted(snapshots, key=lambda s: s.record.time, reverse=True)
    found = {s.id for s in ordered for tags in policy.tags if (tags <= set(s.tags) if tags else not s.tags)}
    if not ordered:
        return found

    def when(snapshot: StoredSnapshot) -> datetime:
        return datetime.fromtimestamp(snapshot.record.time // SECOND, zone)

    def edge(duration: Duration) -> datetime:
        newest = when(ordered[0])
        months = newest.year * 12 + newest.month - 1 - 12 * duration.years - duration.months
        first = newest.replace(year=months // 12, month=months % 12 + 1, day=1)
        return first + timedelta(days=newest.day - 1 - duration.days, hours=-duration.hours)

    found |= {s.id for s in (ordered if policy.last == UNLIMITED else ordered[: policy.last])}
    for period, number in policy.counts.items():
        lasts = [next(group).id for _, group in groupby(ordered, lambda s: PERIODS[period](when(s)))]  # noqa: B023
        found |= set(lasts if number == UNLIMITED else lasts[:number])
        if number == UNLIMITED or number > len(lasts):
            found.add(ordered[-1].id)
    if any(policy.within):
        found |= {s.id for s in ordered if when(s) > edge(policy.within)}
    for period, duration in policy.within_each.items():
        if any(duration):
            inside = [s for s in ordered if when(s) > edge(duration)]
            found |= {next(group).id for _, group in groupby(inside, lambda s: PERIODS[period](when(s)))}  # noqa: B023
            found |= {s.id for s in inside if s is ordered[-1]}
    return found


@patient
@given(lists, policies, zones)
def test_the_same_as_by_sets(snapshots: list[StoredSnapshot], policy: Policy, zone: timezone) -> None:
    decisions = decide(snapshots, policy, NO_TIMES, NOW, zone)
    assert {d.snapshot.id for d in decisions if d.reasons} == by_sets(snapshots, policy, zone)
    assert [d.snapshot.record.time for d in decisions] == sorted(
        (s.record.time for s in snapshots), reverse=True
    )


@patient
@given(lists.filter(bool), policies.filter(bool))
def test_any_policy_but_one_of_tags_keeps_the_newest(snapshots: list[StoredSnapshot], policy: Policy) -> None:
    newest = apply(snapshots, policy)[0]
    assert newest.reasons or (
        policy.tags and not Policy(policy.last, policy.counts, policy.within, policy.within_each)
    )


@patient
@given(lists.filter(bool), policies)
def test_smart_is_seven_days_four_weeks_twelve_months(
    snapshots: list[StoredSnapshot], policy: Policy
) -> None:
    smart = {d.snapshot.id for d in apply(snapshots, Policy().smart()) if d.reasons}
    assert smart == by_sets(snapshots, Policy(counts={"daily": 7, "weekly": 4, "monthly": 12}), UTC)
    assert smart
    assert {d.snapshot.id for d in apply(snapshots, policy.smart()) if d.reasons} >= smart


def test_a_day_is_that_of_the_zone() -> None:
    times = ["2024-05-01 21:00", "2024-05-01 23:00"]
    for zone, number in ((UTC, 1), (timezone(timedelta(hours=2)), 2)):
        assert len(kept(decide(all_of(times), Policy(counts={"daily": 2}), NO_TIMES, NOW, zone))) == 2
        last = decide(all_of(times), Policy(counts={"daily": 2}), NO_TIMES, NOW, zone)[-1]
        assert last.reasons == (("daily snapshot" if number == 2 else "oldest daily snapshot"),)


def test_years_that_no_calendar_knows_are_no_obstacle() -> None:
    snapshots = all_of([-(2**63), -1, 0, NOW, 2**63 - 1])
    policy = Policy(
        1, dict.fromkeys(PERIODS, UNLIMITED), Duration(9999999), dict.fromkeys(PERIODS, Duration(0, 1))
    )
    assert all(d.reasons for d in apply(snapshots, policy))
    assert apply(snapshots, Policy(within=Duration(hours=999_999_999)))[0].reasons
    assert decide([], policy, NO_TIMES, NOW) == ()


# ---- groups ------------------------------------------------------------------------------------------------------------


def test_each_group_by_itself() -> None:
    snapshots = [
        made(0, 1, b"t", host=b"a"), made(1, 2, host=b"a"), made(2, 3, host=b"b", paths=(b"/x", b"/y")),
        made(3, 4, host=b"b", paths=(b"/y", b"/x")),
    ]  # fmt: skip

    def numbers(*words: str) -> list[list[int]]:
        groups = plan(snapshots, Policy(last=1), words, NO_TIMES, NOW, UTC)
        return [[d.snapshot.record.time - 1 for d in group.keep] for group in groups]

    assert numbers("host", "paths") == [[1], [3]]
    assert numbers() == [[3]]
    assert numbers("tags") == [[3], [0]]
    assert plan([], Policy(last=1), ("host",), NO_TIMES, NOW) == []


def test_a_policy_keeps_something_of_every_group() -> None:
    snapshots = [made(0, 1, b"t", host=b"a"), made(1, 2, host=b"b")]
    with pytest.raises(UsageError, match=r"every snapshot of host b, so nothing was forgotten"):
        plan(snapshots, Policy(tags=(frozenset({b"t"}),)), ("host",), NO_TIMES, NOW)


# ---- times in doubt ----------------------------------------------------------------------------------------------------

doubtful = st.lists(st.tuples(moments | near | st.just(NOW + 9 * TOLERANCE), st.booleans()), max_size=30)


@patient
@given(lists.filter(bool), doubtful, policies, st.booleans(), st.randoms())
def test_times_in_doubt_push_no_other_out(
    real: list[StoredSnapshot], forged: list[tuple[int, bool]], policy: Policy, behind: bool, chance: object
) -> None:
    """Whatever they state and wherever they stand in the order of events."""
    false = [made(1000 + n, time, *([b"a"] if tagged else [])) for n, (time, tagged) in enumerate(forged)]
    everything = real + false
    places = list(range(len(everything)))
    chance.shuffle(places)  # type: ignore[attr-defined]
    order = {s.id: place for s, place in zip(everything, places, strict=True)}
    ids = {s.id for s in false}
    times = Times(order, {} if behind else dict.fromkeys(ids, NOW), frozenset(ids if behind else ()))
    alone = {d.snapshot.id for d in apply(real, policy, Times(order)) if d.reasons}
    among = {d.snapshot.id for d in apply(everything, policy, times) if d.reasons}
    assert alone <= among
    # and they are no heap that only grows: the policy is applied to them too
    if policy == Policy(last=2):
        assert len(among & ids) <= 4


def test_a_thousand_forged_times() -> None:
    real = all_of([at("2024-01-01 12:00") + n * 86_400 * SECOND for n in range(400)])
    policy = Policy(2).smart()
    alone = {d.snapshot.id for d in apply(real, policy) if d.reasons}
    forged = [made(10_000 + n, real[n % 400].record.time + (36_000 + n) * SECOND) for n in range(1000)]
    times = Times({s.id: n for n, s in enumerate(real + forged)}, {s.id: NOW for s in forged})
    decisions = apply(real + forged, policy, times)
    assert alone <= {d.snapshot.id for d in decisions if d.reasons}
    assert len([d for d in decisions if d.reasons]) <= 3 * len(alone)
    # and restic's rule alone would have lost them: the test sees
    undefended = {d.snapshot.id for d in apply(real + forged, policy) if d.reasons}
    assert not alone & undefended


def test_what_is_in_doubt_is_kept_by_what_it_states_too() -> None:
    """Old backups that another machine brings in, each with its old time."""
    imported = all_of([f"2024-{month:02}-15 12:00" for month in range(1, 13)])
    own = [made(100, at("2026-11-20 12:00"))]
    times = Times({s.id: n for n, s in enumerate(imported + own)}, {s.id: NOW for s in imported})
    assert len(kept(apply(imported + own, Policy(counts={"monthly": 13}), times))) == 13


def test_the_newest_by_the_order_of_events_is_kept_though_its_clock_was_behind() -> None:
    real = all_of([f"2026-11-{day:02} 12:00" for day in range(1, 21)])
    late = [made(100 + n, at(f"2025-01-{n + 1:02} 12:00")) for n in range(3)]
    times = Times({s.id: n for n, s in enumerate(real + late)}, {}, frozenset(s.id for s in late))
    decisions = apply(real + late, Policy(counts={"daily": 7}), times)
    assert {s.id for s in (*real[-7:], *late)} <= {d.snapshot.id for d in decisions if d.reasons}
    assert kept(apply(real + late, Policy(within=Duration(days=3)), times))[0] == "2025-01-01 12:00"


def test_equal_times_go_by_the_order_of_events() -> None:
    snapshots = [made(n, 5) for n in range(4)]
    times = Times({s.id: place for s, place in zip(snapshots, (2, 3, 0, 1), strict=True)})
    assert [d.snapshot.id[-1] for d in apply(snapshots, Policy(last=1), times)] == [1, 0, 3, 2]

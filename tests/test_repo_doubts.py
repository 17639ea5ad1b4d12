"""Times that do not fit what this machine saw are in doubt; and whatever others publish, real snapshots are kept."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from snapfs.repo.client import Client
from snapfs.repo.doubts import TOLERANCE, Doubt
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.records import Event, EventBody, Head
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.model import Node, NodeType, Snapshot, Totals
from snapfs.repo.retention import PERIODS, UNLIMITED, Duration, Policy, decide
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.system import System
from support.parts import KEYS, REPOSITORY
from support.torture import Rounds

HOUR = 3600 * 10**9
DAY = 24 * HOUR
START = 20_000 * DAY
ROOT = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0)


def snapshot(time: int, tag: bytes = b"") -> Snapshot:
    tags = (tag,) if tag else ()
    return Snapshot(1, ROOT, time, b"h", b"u", (b"/",), tags, Totals(), True, 0, 0, (), (), b"p")


class World:
    """One folder of events, and machines with states of their own, on one clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = START
        (folder / "repository").mkdir()
        self.storage = LocalStorage(str(folder / "repository"))
        self.storage.make_folders()

    def machine(self, name: str, off: int = 0) -> Events:
        """As a new process there would open it; its clock is off by so much (ns)."""
        system = dataclasses.replace(System(), now=lambda: self.now + off)
        return Events(self.storage, KEYS, REPOSITORY, Client(str(self.folder / name), system), system)

    def look(self, name: str, off: int = 0) -> State:
        return self.machine(name, off).load()

    def back_up(self, name: str, *, took: int = 0, off: int = 0, time: int | None = None) -> StoredSnapshot:
        """A backup that began `took` ns ago, or says it did."""
        stated = self.now + off - took if time is None else time
        return self.machine(name, off).publish_snapshot(snapshot(stated, name.encode()))

    def forge(
        self,
        record: bytes,
        *,
        said: int,
        heads: tuple[Head, ...] = (),
        client: bytes = b"f" * 16,
        sequence: int = 1,
    ) -> bytes:
        """What somebody with the key may publish; returns the id."""
        event = Event(1, client, sequence, heads, said, EventBody(records.EVENT_SNAPSHOT, record))
        sealer = Sealer(KEYS.sealing(L.EVENT), L.EVENT, REPOSITORY, System().salt())
        data = seal_record(sealer, records.encode(event))
        (self.folder / "repository/events" / hashlib.sha256(data).hexdigest()).write_bytes(data)
        return KEYS.snapshot_id(record)

    def doubt(self, name: str, wanted: StoredSnapshot | bytes, off: int = 0) -> Doubt | None:
        state = self.look(name, off)
        key = wanted if isinstance(wanted, bytes) else wanted.id
        (found,) = (s for s in state.snapshots if s.id == key)
        return state.times.doubt(key, found.record.time, self.now + off)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.storage.close()


# ---- what is in doubt, and what is not -----------------------------------------------------------------------------------


def test_nothing_speaks_against_ordinary_backups(world: World) -> None:
    made = []
    for day in range(10):
        world.now = START + day * DAY
        made.append(world.back_up("ab"[day % 2], took=day * HOUR, off=(day - 5) * HOUR))
        world.look("c")
    for name in "abc":
        times = world.look(name).times
        assert (times.doubted, times.behind) == ({}, frozenset())
        assert sorted(times.order, key=lambda key: times.order[key]) == [s.id for s in made]


def test_a_machine_that_is_new_takes_times_as_they_are(world: World) -> None:
    old = world.back_up("a", time=START - 900 * DAY)
    assert world.doubt("b", old) is None
    assert world.doubt("a", old) is None, "who gave a time knows why"


@pytest.mark.parametrize(("took", "doubted"), [(25 * HOUR, False), (47 * HOUR, False), (49 * HOUR, True)])
def test_a_time_long_before_the_last_look_is_in_doubt(world: World, took: int, doubted: bool) -> None:
    """The last look was 24 h ago; a backup may take a day."""
    world.back_up("b")
    world.look("a")
    world.now += DAY
    late = world.back_up("b", took=took)
    assert world.doubt("a", late) is (Doubt.UNCONFIRMED if doubted else None)
    world.now += 500 * DAY
    world.back_up("a")
    assert world.doubt("a", late) is (Doubt.UNCONFIRMED if doubted else None), (
        "it does not get better with time"
    )


def test_the_future_stays_in_doubt_when_it_comes(world: World) -> None:
    world.look("a")
    ahead = world.back_up("b", time=START + 30 * DAY)
    assert world.doubt("a", ahead) is Doubt.UNCONFIRMED
    own = world.back_up("a", time=START + 20 * DAY)
    assert world.doubt("a", own) is Doubt.FUTURE
    world.now += 60 * DAY
    assert world.doubt("a", ahead) is Doubt.UNCONFIRMED
    assert world.doubt("a", own) is None
    assert world.doubt("new", ahead) is None


def test_a_clock_that_was_put_right_doubts_nobody(world: World) -> None:
    """This machine's clock was ten years ahead when it looked."""
    world.back_up("b")
    world.look("a", 3650 * DAY)
    world.now += DAY
    later = world.back_up("b")
    assert world.doubt("a", later) is None
    world.now += 5 * DAY
    forged = world.forge(records.encode(snapshot(START - 90 * DAY)), said=world.now)
    assert world.doubt("a", forged) is Doubt.UNCONFIRMED, "and from then on it knows when it looked"


def test_a_clock_behind_is_seen_by_the_order_of_events(world: World) -> None:
    world.back_up("a")
    world.now += DAY
    late = world.back_up("a", off=-300 * DAY)
    assert world.doubt("a", late) is Doubt.BEHIND
    assert world.doubt("new", late) is Doubt.BEHIND
    assert world.doubt("b", world.back_up("b", off=-20 * HOUR)) is None


def test_a_clock_ahead_puts_no_later_snapshot_in_doubt(world: World) -> None:
    world.back_up("a")
    ahead = world.back_up("a", off=900 * DAY)
    later = []
    for _ in range(3):
        world.now += DAY
        later.append(world.back_up("a"))
    assert [world.doubt("a", s) for s in (ahead, *later)] == [Doubt.FUTURE, None, None, None]


def test_a_record_that_is_published_again_casts_no_doubt(world: World) -> None:
    """Neither on its time nor on its place: whoever has the key can publish the record of a real snapshot as his own."""
    real = []
    for _ in range(5):
        real.append(world.back_up("b"))
        world.now += DAY
    before = world.look("a").times
    head = max((e for e in world.machine("a").load().heads), key=lambda h: h.sequence)
    for stored in real:
        world.forge(records.encode(stored.record), said=0)
        world.forge(records.encode(stored.record), said=5, heads=(head,))
        world.forge(records.encode(stored.record), said=START + 900 * DAY)
    for _ in range(2):
        after = world.look("a").times
        assert (after.doubted, after.behind) == ({}, frozenset())
    assert before.doubted == {}


def test_events_from_the_future_put_no_other_in_doubt(world: World) -> None:
    """A forged event that says next month, when next month has come."""
    world.look("a")
    state = world.machine("b").load()
    world.forge(records.encode(snapshot(START)), said=START + 30 * DAY, heads=state.heads)
    world.look("a")
    for _ in range(10):
        world.now += DAY
        world.back_up("b")
    world.now += 60 * DAY
    world.back_up("a")
    assert world.look("a").times.behind == frozenset()


@pytest.mark.parametrize("how", ["damaged", "missing", "missing and accepted", "rolled back"])
def test_what_lies_behind_a_lost_event_is_not_new(world: World, how: str) -> None:
    """Of a chain one cannot follow any more, nothing is known: no reason to doubt all that came before."""
    folder = world.folder / "repository" / "events"
    names: list[str] = []
    for _ in range(6):
        before = {path.name for path in folder.iterdir()}
        world.back_up("b")
        names += {path.name for path in folder.iterdir()} - before
        world.now += 5 * DAY
        world.look("a")
    kept = [(folder / name).read_bytes() for name in names]
    gone = names[3:] if how == "rolled back" else names[3:4]
    for name in gone:
        (folder / name).write_bytes(b"rubbish") if how == "damaged" else (folder / name).unlink()
    if how in ("missing and accepted", "rolled back"):
        world.machine("a").accept()
    for _ in range(2):
        state = world.look("a")
        assert len(state.snapshots) == 6 - len(gone)
        assert (state.times.doubted, state.times.behind) == ({}, frozenset())
        world.now += DAY
    forged = world.forge(records.encode(snapshot(START - 90 * DAY)), said=world.now)
    assert set(world.look("a").times.doubted) == {forged}, "from then on, what is new is known again"
    for name, data in zip(names, kept, strict=True):
        (folder / name).write_bytes(data)
    if how != "rolled back":  # where they were given up, they are new again
        assert set(world.look("a").times.doubted) == {forged}


# ---- which is the newest -------------------------------------------------------------------------------------------------


def order(world: World, name: str) -> list[bytes]:
    return [s.id for s in world.look(name).snapshots]


def test_a_time_to_come_makes_a_snapshot_the_latest_until_the_next_and_not_for_ever(world: World) -> None:
    first = world.back_up("b")
    world.look("a")
    world.now += DAY
    forged = world.forge(records.encode(snapshot(START + 900 * DAY)), said=START, heads=world.look("a").heads)
    for name in ("a", "new"):
        assert order(world, name) == [first.id, forged]
    world.now += DAY
    second = world.back_up("b")
    for name in ("a", "new", "newer"):
        assert order(world, name) == [first.id, forged, second.id]
    world.now += 950 * DAY
    assert order(world, "a") == [first.id, forged, second.id], "nor when its time has come"


def test_one_that_came_after_nothing_is_not_the_latest(world: World) -> None:
    """A fork from the beginning: nobody whose time is believed came before it."""
    real = [world.back_up("b")]
    forged = world.forge(records.encode(snapshot(START + 900 * DAY)), said=0)
    world.now += DAY
    real.append(world.back_up("b"))
    assert order(world, "a") == [forged, *(s.id for s in real)]


def test_a_clock_that_was_ahead_leaves_the_latest_as_it_was_made(world: World) -> None:
    """All of one machine's times were wrong, and then right; while they are wrong, they are to be believed as ever."""
    made = [world.back_up("a", off=900 * DAY + n * HOUR) for n in range(3)]
    assert [s.id for s in world.look("a", 900 * DAY + 3 * HOUR).snapshots] == [s.id for s in made]
    assert order(world, "new") == [s.id for s in made]
    world.now += DAY
    made.append(world.back_up("a"))
    for name in ("a", "new", "newer"):
        assert order(world, name) == [s.id for s in made]


def test_a_time_that_is_long_past_is_left_where_it_is(world: World) -> None:
    """A copy of snapshots that another machine made long ago, say: they are no news."""
    world.back_up("a")
    world.now += 30 * DAY
    mine = world.back_up("a")
    late = world.back_up("b", took=20 * DAY)
    assert world.doubt("a", late) is Doubt.UNCONFIRMED
    assert order(world, "a")[-1] == mine.id


def test_past_times_keep_their_order_where_nothing_else_is_there(world: World) -> None:
    """Old backups are brought into a new repository, the newest first, and another machine hears of it later."""
    world.look("a")
    world.now += 30 * DAY
    brought = [world.back_up("b", time=START - n * DAY) for n in (10, 20, 30)]
    assert {world.doubt("a", one) for one in brought} == {Doubt.UNCONFIRMED}
    for name in ("a", "b"):
        assert order(world, name) == [one.id for one in reversed(brought)]


# ---- what is remembered --------------------------------------------------------------------------------------------------


def test_a_state_file_of_before_is_read(world: World) -> None:
    world.back_up("b")
    world.look("a")
    path = world.folder / "a" / "client"
    old = msgspec.msgpack.decode(path.read_bytes()[len(b"snapfs state 1\n") + 32 :])
    for name in ("looked", "doubted"):
        del old[name]
    path.write_bytes(msgspec.msgpack.encode(old))
    forged = world.forge(records.encode(snapshot(START - 90 * DAY)), said=START)
    assert world.doubt("a", forged) is None, "it cannot know when it looked"
    again = world.forge(records.encode(snapshot(START - 91 * DAY)), said=START)
    assert world.doubt("a", again) is Doubt.UNCONFIRMED


def test_a_look_that_finds_nothing_new_writes_once_an_hour(world: World) -> None:
    world.back_up("b")
    world.look("a")
    path = world.folder / "a" / "client"
    first = path.stat().st_ino
    world.now += HOUR - 1
    world.look("a")
    assert path.stat().st_ino == first
    world.now += 1
    world.look("a")
    assert path.stat().st_ino != first
    assert Client(str(world.folder / "a"), System()).remembered.looked == world.now


def test_processes_of_one_machine_share_what_they_know(world: World) -> None:
    """A mount that has been there for days, and backups beside it."""
    world.back_up("a")
    mount = world.machine("a")
    mount.load()
    world.now += 5 * DAY
    own = world.back_up("a", time=START - 400 * DAY)
    assert mount.load().times.doubted == {}, "another process of this machine made it"
    forged = world.forge(records.encode(snapshot(START - 90 * DAY)), said=world.now)
    assert mount.load().times.doubted == {forged: world.now}
    world.now += DAY
    other = world.machine("a")
    assert other.load().times.doubted == {forged: world.now - DAY}
    world.back_up("a")
    assert set(world.look("a").times.doubted) == {forged}
    assert own.id not in world.look("a").times.doubted


def test_without_a_place_to_remember_nothing_is_doubted_for_that(world: World) -> None:
    (world.folder / "file").write_bytes(b"")
    world.back_up("b", time=START - 90 * DAY)
    state = world.look("file/below")
    assert state.times.doubted == {}
    assert not os.path.exists(world.folder / "file" / "below")


# ---- what that is for ----------------------------------------------------------------------------------------------------

POLICIES = [
    Policy(5),
    Policy().smart(),
    Policy(counts={"hourly": 30, "daily": 10, "yearly": 2}),
    Policy(within=Duration(days=9), within_each={"weekly": Duration(months=3)}),
    Policy(2, {"daily": UNLIMITED, "monthly": 3}),
]


def kept(state: State, policy: Policy, now: int, only: set[bytes] | None = None) -> set[bytes]:
    chosen = [s for s in state.snapshots if only is None or s.id in only]
    return {d.snapshot.id for d in decide(chosen, policy, state.times, now) if d.reasons}


@pytest.mark.torture
def test_whatever_others_publish_real_snapshots_are_kept(tmp_path: Path, rounds: Rounds) -> None:
    """Real backups of two machines, and forged ones that state any time but that of now (that is another backup, and counts as
    one), under any name, at any place among the events."""
    for seed in rounds.seeds(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        others_publish(World(folder), random.Random(seed))


def others_publish(world: World, chance: random.Random) -> None:
    real: list[StoredSnapshot] = []
    world.look("a")
    own = Client(str(world.folder / "a"), System()).id
    for _ in range(40):
        world.now += chance.choice((2 * HOUR, 12 * HOUR, DAY, 4 * DAY))
        real.append(world.back_up(chance.choice("ab"), took=chance.randrange(10 * HOUR)))
        looked = world.now
        state = world.look("a")
        world.now += chance.randrange(DAY)
        for _ in range(chance.choice((0, 0, 1, 20))):
            late = looked - TOLERANCE - 1 - chance.randrange(400 * DAY)
            ahead = world.now + TOLERANCE + 5 * DAY + chance.randrange(400 * DAY)  # later than the next look
            record = records.encode(snapshot(chance.choice((late, ahead)), b"%d" % chance.randrange(10**9)))
            if chance.random() < 0.1:
                record = records.encode(chance.choice(real).record)
            world.forge(
                record, said=chance.choice((0, late, ahead, world.now)), client=chance.choice((b"f" * 16, own)),
                heads=tuple(chance.sample(state.heads, chance.randrange(len(state.heads) + 1))),
                sequence=chance.randrange(1, 99),
            )  # fmt: skip
    world.now += 9 * HOUR
    state = world.look("a")
    ids = {s.id for s in real}
    assert len(state.snapshots) > len(real)
    undefended = 0
    for policy in POLICIES:
        alone = kept(state, policy, world.now, ids)
        assert alone <= kept(state, policy, world.now)
        naive = dataclasses.replace(state, times=state.times._replace(doubted={}, behind=frozenset()))
        undefended += not alone <= kept(naive, policy, world.now)
    assert undefended, "without doubts they would have been lost: the test sees"


@pytest.mark.parametrize("off", [-3650 * DAY, -40 * DAY, 40 * DAY, 3650 * DAY])
def test_a_clock_that_is_wrong_for_a_while_evicts_nothing(world: World, off: int) -> None:
    """Of the machine that makes the backups and forgets.  Rules that count: with durations, `forget` looks at what is left."""
    before = []
    for _ in range(12):
        world.now += DAY
        before.append(world.back_up("a"))
    during = []
    for _ in range(3):
        world.now += DAY
        during.append(world.back_up("a", off=off))
    for now in (world.now + off, world.now):  # still wrong, and right again
        state = world.machine("a", now - world.now).load()
        for policy in (Policy().smart(), Policy(counts={"daily": 12}), Policy(10)):
            found = kept(state, policy, now)
            assert during[-1].id in found
            lasts = kept(state, policy, now, {s.id for s in before})
            rules = max(len(policy.counts), 1)
            assert len(lasts - found) <= len(during) * rules, (
                "each takes the place of one for each rule, at most"
            )
    after = []
    for _ in range(3):
        world.now += DAY
        after.append(world.back_up("a"))
    found = kept(world.look("a"), Policy(counts={"daily": 6, "weekly": 2}), world.now)
    assert {s.id for s in after} <= found
    assert during[-1].id in found


def test_policies_name_every_period() -> None:
    assert set(POLICIES[1].counts) | set(POLICIES[2].counts) | {"weekly"} == set(PERIODS)

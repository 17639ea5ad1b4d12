"""What the events add up to: by who had seen what, not by clocks; and what is wrong with them is said, and hides nothing else."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import hashlib
import itertools
import os
import random
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from snapfs.repo import events as events_module
from snapfs.repo.client import Client
from snapfs.repo.errors import StorageError, UnsupportedFormat
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.records import Event, EventBody
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.model import Node, NodeType, Snapshot, Totals
from snapfs.repo.state import State, StoredSnapshot
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.system import System
from support import repositories
from support.parts import KEYS, REPOSITORY

ROOT = Node(b"", NodeType.DIRECTORY, 0o755, 0, 0, None, None, 0, 0)

FILE = Node(b"", NodeType.FILE, 0o644, 0, 0, None, None, 0, 0, 0)


def snapshot(time: int, *tags: bytes, complete: bool = True) -> Snapshot:
    return Snapshot(1, ROOT, time, b"h", b"u", (b"/",), tags, Totals(), complete, 0, 0, (), (), b"p")


class World:
    """One folder of events, and any number of clients with clocks of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "repository").mkdir()
        self.storage = LocalStorage(str(folder / "repository"))
        self.storage.make_folders()

    def client(self, name: str, clock: int = 0) -> Events:
        """As a new process of this client would open it; its clock stands."""
        system = dataclasses.replace(System(), now=lambda: clock)
        return Events(self.storage, KEYS, REPOSITORY, Client(str(self.folder / name), system), system)

    def state(self) -> State:
        return self.client("stranger").load()

    def files(self) -> list[Path]:
        return sorted((self.folder / "repository" / "events").iterdir())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.storage.close()


def times(state: State) -> list[int]:
    return [s.record.time for s in state.snapshots]


def tags(state: State) -> list[tuple[bytes, ...]]:
    return [s.tags for s in state.snapshots]


def test_no_events_at_all_is_said(world: World) -> None:
    """An init writes the first event, so a repository without any has lost them."""
    state = world.state()
    assert (state.snapshots, state.checkpoints, state.heads) == ([], [], ())
    assert "no events at all" in state.problems[0]


def test_snapshots_come_back_by_time(world: World) -> None:
    a = world.client("a")
    stored = [a.publish_snapshot(snapshot(time)) for time in (30, 10, 20)]
    state = world.state()
    assert times(state) == [10, 20, 30]
    assert set(state.snapshots) == set(stored)
    assert state.problems == []
    first: StoredSnapshot = state.snapshots[0]
    assert first.short == first.id.hex()[:8]
    assert first.id == KEYS.snapshot_id(records.encode(first.record))
    assert [path.stat().st_size % L.RECORD_STEP for path in world.files()] == [0, 0, 0]
    assert [path.name for path in world.files()] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in world.files()
    ]


def test_checkpoints_are_hidden(world: World) -> None:
    a = world.client("a")
    a.publish_snapshot(snapshot(1, complete=False))
    a.publish_snapshot(snapshot(2))
    state = world.state()
    assert times(state) == [2]
    assert [s.record.time for s in state.checkpoints] == [1]


def test_tags_forget_undelete(world: World) -> None:
    a = world.client("a")
    one, two = a.publish_snapshot(snapshot(1, b"old")), a.publish_snapshot(snapshot(2))
    a.set_tags(one.id, [b"new", b"er"])
    assert tags(world.state()) == [(b"new", b"er"), ()]
    a.set_tags(one.id, [])
    assert tags(world.state()) == [(), ()]
    a.forget([one.id, two.id])
    assert world.state().snapshots == []
    a.publish(EventBody(records.EVENT_UNDELETE, None, (two.id,)))
    assert times(world.state()) == [2]
    a.publish(EventBody(records.EVENT_UNDELETE, None, (one.id,)))
    assert tags(world.state()) == [(), ()], "what was tagged before stays so"
    assert world.state().snapshots[0].record.tags == (b"old",), "the record is never rewritten"
    a.forget([bytes(32)])
    assert times(world.state()) == [1, 2]


def test_key_notes(world: World) -> None:
    world.client("a", 5).publish(
        EventBody(records.EVENT_KEY_ADDED, None, (b"s" * 32,), (b"label", b"host", b"us\xffer"))
    )
    assert world.state().key_notes == {b"s" * 32: ("label", "host", "us\ufffder", 5, False, 1, None)}
    more = (b"", b"", b"", records.KEY_RECOVERY, b"what a later version adds")
    world.client("a", 6).publish(EventBody(records.EVENT_KEY_ADDED, None, (b"r" * 32,), more))
    assert world.state().key_notes[b"r" * 32] == ("", "", "", 6, True, 1, None)


def test_order_is_who_had_seen_what_and_not_the_clock(world: World) -> None:
    """Every next event is by a client whose clock is an hour behind the one before."""
    one = world.client("a", 10**6).publish_snapshot(snapshot(1))
    for i in range(1, 8):
        world.client("ab"[i % 2], 10**6 - 3600 * i).set_tags(one.id, [b"%d" % i])
    assert tags(world.state()) == [(b"7",)]
    world.client("b", -5).forget([one.id])
    world.client("a", -9).publish(EventBody(records.EVENT_UNDELETE, None, (one.id,)))
    assert times(world.state()) == [1]


def test_files_in_any_order_add_up_to_the_same(world: World, tmp_path: Path) -> None:
    """Folded from a listing in another order, and from events that came one by one."""
    rng = random.Random(2)
    clients = [world.client(name, clock) for name, clock in (("a", 5), ("b", 0), ("c", 9))]
    stored = [rng.choice(clients).publish_snapshot(snapshot(i)) for i in range(6)]
    for i in range(12):
        rng.choice(clients).set_tags(rng.choice(stored).id, [b"%d" % i])
    clients[0].forget([stored[0].id])
    expected = world.state()
    names = [path.name for path in world.files()]
    for _ in range(5):
        rng.shuffle(names)
        listing = [
            (f"events/{name}", (tmp_path / "repository/events" / name).stat().st_size) for name in names
        ]
        events = world.client("stranger")
        events._storage = Listed(world.storage, listing)  # type: ignore[assignment]
        assert events.load() == expected


class Listed:
    def __init__(self, storage: LocalStorage, listing: list[tuple[str, int]]) -> None:
        self._listing = listing
        self.read = storage.read

    def stamp(self, _: str) -> None:
        return None

    def list(self, _: str) -> Iterator[tuple[str, int]]:
        return iter(self._listing)

    def adopt(self, names: Iterable[str]) -> None:
        assert {name for name, _ in self._listing} >= set(names)


def fork(world: World, tmp_path: Path) -> tuple[StoredSnapshot, StoredSnapshot]:
    """Two clients that write without seeing each other: each into a copy, and both copies put together."""
    folder, copy = tmp_path / "repository" / "events", tmp_path / "copy"
    shutil.copytree(folder, copy)
    one = world.client("a", 100).publish_snapshot(snapshot(100))
    mine = set(os.listdir(folder)) - set(os.listdir(copy))
    for name in mine:
        shutil.move(folder / name, copy / name)
    two = world.client("b", 50).publish_snapshot(snapshot(50))
    for name in mine:
        shutil.move(copy / name, folder / name)
    return one, two


def test_forks_are_legal_and_merge(world: World, tmp_path: Path) -> None:
    world.client("a").publish_snapshot(snapshot(1))
    fork(world, tmp_path)
    state = world.state()
    assert times(state) == [1, 50, 100]
    assert state.problems == []
    assert len(state.heads) == 2
    world.client("c").publish_snapshot(snapshot(2))
    state = world.state()
    assert len(state.heads) == 1
    assert times(state) == [1, 2, 50, 100]
    assert state.problems == []


def test_in_a_fork_time_decides_and_after_it_the_merge(world: World, tmp_path: Path) -> None:
    base = world.client("a").publish_snapshot(snapshot(1))
    folder, copy = tmp_path / "repository" / "events", tmp_path / "copy"
    shutil.copytree(folder, copy)
    world.client("a", 100).set_tags(base.id, [b"later"])
    mine = set(os.listdir(folder)) - set(os.listdir(copy))
    for name in mine:
        shutil.move(folder / name, copy / name)
    world.client("b", 50).set_tags(base.id, [b"earlier"])
    for name in mine:
        shutil.move(copy / name, folder / name)
    assert tags(world.state()) == [(b"later",)]
    world.client("b", 0).set_tags(base.id, [b"merged"])
    assert tags(world.state()) == [(b"merged",)]


def test_sequence_numbers_go_up_across_processes(world: World) -> None:
    for expected in (1, 2, 3):
        events = world.client("a")
        name = events.publish(EventBody(records.EVENT_FORGET))
        event = events._opened[name]
        assert isinstance(event, Event)
        assert event.sequence == expected
        assert len(event.heads) == (expected > 1)
    assert world.client("a").load().sequence == 3
    assert world.client("b").load().sequence == 0


def test_another_process_s_events_are_seen(world: World) -> None:
    a, b = world.client("a"), world.client("b")
    assert a.load() is a.load(), "cheap where nothing is new"
    b.publish_snapshot(snapshot(1))
    assert times(a.load()) == [1]
    a.publish_snapshot(snapshot(2))
    assert times(b.load()) == [1, 2]
    assert len(b.load().heads) == 1


def test_events_tell_whether_there_may_be_new_ones(world: World) -> None:
    """Also two events within one tick of the file system's clock: a folder that changed just now is never trusted."""
    folder = world.folder / "repository" / "events"
    a, b = world.client("a"), world.client("b")
    b.publish_snapshot(snapshot(1))
    moment = folder.stat().st_mtime_ns
    a.load()
    b.publish_snapshot(snapshot(2))
    os.utime(folder, ns=(moment, moment))
    assert a.may_have_changed()
    assert times(a.load()) == [1, 2]
    os.utime(folder, ns=(0, 0))
    a.load()
    assert not a.may_have_changed()
    b.publish_snapshot(snapshot(3))
    assert a.may_have_changed()


def test_a_long_chain_is_no_deep_recursion(world: World) -> None:
    events = world.client("a")
    opened: dict[bytes, Event | str] = {}
    heads: tuple[records.Head, ...] = ()
    for i in range(5000):
        name = hashlib.sha256(b"%d" % i).digest()
        opened[name] = Event(
            1, b"c", i + 1, heads, -i, EventBody(records.EVENT_TAGS, None, (b"x",), (b"%d" % i,))
        )
        heads = (records.Head(b"c", i + 1, name),)
    events._opened = dict(reversed(opened.items()))
    state = events._fold()
    assert [head.sequence for head in state.heads] == [5000]


# ---- what is wrong -----------------------------------------------------------------------------------------------------


def test_a_missing_event_is_said(world: World) -> None:
    a = world.client("a")
    published = [a.publish(EventBody(records.EVENT_SNAPSHOT, records.encode(snapshot(i)))) for i in range(3)]
    os.unlink(world.folder / "repository" / "events" / published[1].hex())
    state = world.state()
    assert times(state) == [0, 2]
    assert len(state.problems) == 1
    assert published[1].hex()[:8] in state.problems[0]
    assert published[2].hex()[:8] in state.problems[0]


def test_a_missing_last_event_is_said_by_a_client_that_saw_it(world: World) -> None:
    """Nothing in the repository names the newest event: only a memory outside of it can tell of a rollback."""
    a = world.client("a")
    a.publish_snapshot(snapshot(1))
    last = a.publish(EventBody(records.EVENT_SNAPSHOT, records.encode(snapshot(2))))
    os.unlink(world.folder / "repository" / "events" / last.hex())
    assert world.state().problems == [], "a stranger cannot know"
    (problem,) = world.client("a").load().problems
    assert last.hex()[:8] in problem
    assert "this machine has seen it" in problem


def test_an_empty_folder_is_a_rollback_too(world: World) -> None:
    world.client("a").publish_snapshot(snapshot(1))
    for path in world.files():
        path.unlink()
    assert len(world.client("a").load().problems) == 2


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "other name", "huge"])
def test_a_damaged_event_is_said_and_hides_no_other(world: World, how: str) -> None:
    a = world.client("a")
    published = [a.publish(EventBody(records.EVENT_SNAPSHOT, records.encode(snapshot(i)))) for i in range(3)]
    path = world.folder / "repository" / "events" / published[1].hex()
    data = path.read_bytes()
    if how == "huge":
        with path.open("r+b") as f:
            f.truncate(1 << 40)
    else:
        path.write_bytes({"flip": data[:-1] + bytes((data[-1] ^ 1,)), "cut": data[:500], "empty": b"",
                          "other name": world.files()[0].read_bytes()}[how])  # fmt: skip
    world.storage.close()
    state = world.state()
    assert [t for t in times(state) if t != 1] == [0, 2]
    if world.files()[0] != path or how != "other name":
        assert times(state) == [0, 2]
        assert len(state.problems) == 1
        assert published[1].hex()[:8] in state.problems[0]
        assert "\n" not in state.problems[0]
    world.client("b").publish_snapshot(snapshot(5))
    assert 5 in times(world.state())


def put(world: World, data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()
    world.storage.put(f"events/{name}", data)
    return name


def seal(record: bytes, repository: bytes = REPOSITORY) -> bytes:
    return seal_record(Sealer(KEYS.sealing(L.EVENT), L.EVENT, repository, System().salt()), record)


ROOTLESS = msgspec.structs.replace(snapshot(1), root=FILE)


def event(body: EventBody) -> bytes:
    return records.encode(Event(1, b"c" * 16, 1, (), 0, body))


@pytest.mark.parametrize(
    "data",
    [
        seal(b"no event"),
        seal(event(EventBody(records.EVENT_SNAPSHOT, b"no snapshot"))),
        seal(event(EventBody(records.EVENT_SNAPSHOT, records.encode(ROOTLESS)))),
        seal(event(EventBody(records.EVENT_FORGET)), bytes(16)),
        b"rubbish",
    ],
    ids=["no event", "no snapshot", "root is a file", "another repository's", "rubbish"],
)  # fmt: skip
def test_what_is_no_event_is_said_and_hides_no_other(world: World, data: bytes) -> None:
    world.client("a").publish_snapshot(snapshot(7))
    name = put(world, data)
    state = world.state()
    assert times(state) == [7]
    assert len(state.problems) == 1
    assert name[:8] in state.problems[0]


@pytest.mark.parametrize("kind", [0, 99])
def test_unknown_kinds_of_event_are_passed_over(world: World, kind: int) -> None:
    put(world, seal(event(EventBody(kind, b"what", (b"ever",)))))
    world.client("a").publish_snapshot(snapshot(7))
    assert times(world.state()) == [7]
    assert world.state().problems == []


def test_a_newer_event_is_refused(world: World) -> None:
    put(world, seal(records.encode(Event(2, b"c" * 16, 1, (), 0, EventBody(1)))))
    with pytest.raises(UnsupportedFormat):
        world.state()


def test_a_number_after_which_there_is_none(world: World) -> None:
    client = world.client("a")
    own = client.publish_snapshot(snapshot(6)).client
    put(world, seal(records.encode(Event(1, own, 2**64 - 1, (), 0, EventBody(99)))))
    for time in (7, 8):
        world.client("a").publish_snapshot(snapshot(time))
    assert times(world.state()) == [6, 7, 8]


def test_strange_files_are_passed_over(world: World) -> None:
    world.client("a").publish_snapshot(snapshot(7))
    for name in ("README", "x" * 64, "ab " * 21 + "a", "AB" * 32, ".nfs0001", "ab" * 31):
        world.storage.put(f"events/{name}", b"what is this")
    state = world.state()
    assert times(state) == [7]
    assert state.problems == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENODEV])
def test_an_event_that_cannot_be_read_is_no_absent_event(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    world.client("a").publish_snapshot(snapshot(7))

    def read(*_: object) -> bytes:
        raise StorageError(os.strerror(number), number)

    events = world.client("b")
    monkeypatch.setattr(world.storage, "read", read)
    with pytest.raises(StorageError):
        events.load()
    monkeypatch.undo()
    assert times(events.load()) == [7]


def failing(world: World, monkeypatch: pytest.MonkeyPatch, name: bytes, times: int) -> None:
    """So often the disk does not give back this event."""
    real, left = world.storage.read, [times]

    def read(path: str, *args: int) -> bytes:
        if path.endswith(name.hex()) and left[0]:
            left[0] -= 1
            raise StorageError("Input/output error", errno.EIO)
        return real(path, *args)

    monkeypatch.setattr(world.storage, "read", read)


def test_an_event_that_fails_once_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.client("a").publish(EventBody(records.EVENT_SNAPSHOT, records.encode(snapshot(7))))
    failing(world, monkeypatch, one, 1)
    state = world.client("b").load()
    assert times(state) == [7]
    assert state.problems == []


def test_a_bad_sector_under_an_event_is_damage_of_that_event_until_it_reads_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hides no other, in the same process it comes back when the disk does, and nobody forgets that it was here."""
    a = world.client("a")
    published = [a.publish(EventBody(records.EVENT_SNAPSHOT, records.encode(snapshot(i)))) for i in range(3)]
    failing(world, monkeypatch, published[2], 4)
    for _ in range(2):  # each load tries twice
        state = world.client("a").load()
        assert times(state) == [0, 1]
        assert len(state.problems) == 1
        assert "Input/output error" in state.problems[0]
        assert state.missing == {}
        assert state.sequence == 3, "the number of the damaged one is not given again"
    monkeypatch.undo()
    path = world.folder / "repository" / "events" / published[2].hex()
    aside = path.rename(world.folder / "aside")
    state = world.client("a").load()
    assert list(state.missing) == [published[2]], "that it cannot be read is no reason to forget it"
    aside.rename(path)
    assert times(world.client("a").load()) == [0, 1, 2]


def test_a_damaged_event_is_tried_again_by_a_process_that_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount for months: what was wrong with the cable must not be said for ever."""
    now = 100.0
    monkeypatch.setattr(events_module.time, "monotonic", lambda: now)
    name = world.client("a").publish(EventBody(records.EVENT_SNAPSHOT, records.encode(snapshot(7))))
    path = world.folder / "repository" / "events" / name.hex()
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes((good[-1] ^ 1,)))
    world.storage.close()
    os.utime(path.parent, ns=(0, 0))
    b = world.client("b")
    assert times(b.load()) == []
    assert b.load().problems
    path.write_bytes(good)
    os.utime(path.parent, ns=(0, 0))
    assert b.load().problems, "a failing disk is not asked at every turn"
    assert not b.may_have_changed()
    now += 61
    assert b.may_have_changed(), "nothing in the folder's times tells it"
    assert times(b.load()) == [7]
    assert b.load().problems == []
    assert not b.may_have_changed()


def test_a_load_that_failed_is_no_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks whether there may be anything new must not be told no, because the folder looks as it did then."""
    b = world.client("b")
    b.load()
    world.client("a").publish_snapshot(snapshot(7))
    os.utime(world.folder / "repository" / "events", ns=(0, 0))

    def read(*_: object) -> bytes:
        raise StorageError("Permission denied", errno.EACCES)

    monkeypatch.setattr(world.storage, "read", read)
    with pytest.raises(StorageError):
        b.load()
    monkeypatch.undo()
    assert b.may_have_changed()
    assert times(b.load()) == [7]


def test_hostile_graphs_end(world: World) -> None:
    """Events that name one another cannot be made (names are hashes), but folding must not depend on that."""
    names = [bytes((i,)) * 32 for i in range(4)]
    events = world.client("a")
    for targets in itertools.product(names, repeat=3):
        events._opened = {
            name: Event(
                1, b"c", 1, (records.Head(b"c", 1, target), records.Head(b"c", 1, names[3])), 0, EventBody(4)
            )
            for name, target in zip(names, targets, strict=False)
        }
        assert events._fold().snapshots == []


# ---- what a client remembers -------------------------------------------------------------------------------------------


def test_a_client_keeps_its_id_and_heads(tmp_path: Path) -> None:
    system = System()
    one = Client(str(tmp_path / "a"), system)
    one.remember(slot="s", heads=[records.Head(one.id, 1, bytes(32))])
    again = Client(str(tmp_path / "a"), system)
    assert again.remembered == one.remembered
    assert again.id == one.id != Client(str(tmp_path / "b"), system).id
    assert os.stat(tmp_path / "a" / "client").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x80", msgspec.msgpack.encode({"client": 5})])
def test_a_damaged_state_file_is_a_new_client(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "client").write_bytes(content)
    client = Client(str(tmp_path), System())
    assert len(client.id) == 16
    client.remember(slot="x")
    assert Client(str(tmp_path), System()).id == client.id


def test_state_that_cannot_be_written_is_forgotten_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (str(tmp_path / "file" / "below"), None):
        client = Client(folder, System())
        client.remember(slot="x")
        client.remember(slot="y")
        assert client.remembered.slot == "y"
        assert Client(folder, System()).id != client.id
    (said,) = caplog.messages
    assert said.startswith(f"cannot write {tmp_path}/file/below/client: Not a directory: ")


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_state_file_whose_disk_fails_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    before = Client(str(tmp_path), System())
    before.remember(slot="before")
    again, real = Client(str(tmp_path), System()), getattr(os, call)

    def fail(*args: Any, **more: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return real(*args, **more)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        again.remember(slot="x")
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert Client(str(tmp_path), System()).remembered == before.remembered
    assert os.listdir(tmp_path) == ["client"], "what was begun is taken away"
    again.remember(slot="y")
    assert Client(str(tmp_path), System()).remembered.slot == "y"


def test_a_state_file_that_cannot_be_read_is_left_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Written over, it would have forgotten by one bad moment who this machine is, and what it has seen."""
    before = Client(str(tmp_path), System())
    before.remember(slot="before", heads=[records.Head(before.id, 1, bytes(32))])

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", fail)
        blind = Client(str(tmp_path), System())
    blind.remember(slot="x")
    assert blind.id != before.id
    (said,) = caplog.messages
    assert said.startswith(f"cannot read {tmp_path}/client: Input/output error: ")
    assert Client(str(tmp_path), System()).remembered == before.remembered


def test_folders_that_cannot_be_fsynced_are_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    Client(str(tmp_path), System()).remember(slot="x")
    assert caplog.messages == []


def test_state_that_cannot_be_read_just_then_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hiccups: the machine must know afterwards who it is and what it saw."""
    before = Client(str(tmp_path), System())
    before.remember(slot="s", heads=[records.Head(before.id, 1, bytes(32))])
    real = open

    def failing(path: object, *args: Any, **more: Any) -> Any:
        if path == str(tmp_path / "client") and args == ("rb",):
            raise OSError(5, "Input/output error")
        return real(path, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", failing)
    client = Client(str(tmp_path), System())
    client.remember(slot="x", heads=[])
    client.refresh()
    monkeypatch.undo()
    assert client.is_unreadable
    assert client.id != before.id
    assert Client(str(tmp_path), System()).remembered == before.remembered


def test_rollback_is_said_until_it_is_undone(tmp_path: Path) -> None:
    repositories.create(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    repositories.snapshot(tmp_path, source)
    before = {p.name: p.read_bytes() for p in (tmp_path / "repository/events").iterdir()}
    lost = repositories.snapshot(tmp_path, source, tags=(b"lost",))
    (newest,) = [p for p in (tmp_path / "repository/events").iterdir() if p.name not in before]
    kept = newest.read_bytes()
    newest.unlink()
    repositories.snapshot(tmp_path, source, tags=(b"later",))
    with repositories.open_(tmp_path) as repository:
        assert any("is missing" in problem for problem in repository.events.load().problems)
    newest.write_bytes(kept)
    with repositories.open_(tmp_path) as repository:
        state = repository.events.load()
        assert not state.problems
        assert lost.id in {s.id for s in state.snapshots}

"""New keys for a repository: what was before stays, what old keys make afterwards is nothing, and it may end anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import (
    Damaged,
    OldKeys,
    RepositoryLocked,
    RolledBack,
    StorageError,
    UsageError,
    WrongPassword,
)
from snapfs.repo.events import Events
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.records import Event, EventBody
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.model import Kind
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.prune.plan import Unused
from snapfs.repo.repository import Repository
from snapfs.repo.rotation import rotate
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.system import System
from snapfs.repo.undelete import undelete
from support import repositories as repos
from support import same
from support.repositories import CHEAP, PASSWORD
from support.rotations import Thief, bundle_of, change_keys, epochs, opened
from support.sources import Watch
from support.trees import noise

OTHER, NEW = b"another", b"a new one"


@pytest.fixture
def taken(tmp_path: Path) -> bytes:
    """A repository with one snapshot; returns the snapshot's id."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"content of the file" * 50)
    repos.create(tmp_path)
    return repos.snapshot(tmp_path, tmp_path / "source").id


def slots(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "repository/keys").iterdir()}


def put_back(folder: Path, before: dict[str, bytes]) -> None:
    for name, data in before.items():
        (folder / "repository/keys" / name).write_bytes(data)


def only_old(folder: Path, before: dict[str, bytes]) -> None:
    shutil.rmtree(folder / "repository/keys")
    (folder / "repository/keys").mkdir()
    put_back(folder, before)


def shown(folder: Path, password: bytes = PASSWORD, machine: str = "") -> list[bytes]:
    with opened(folder, password, machine) as repository:
        return [s.id for s in repository.snapshots()]


def back_up(folder: Path, password: bytes = PASSWORD, machine: str = "") -> bytes:
    with opened(folder, password, machine) as repository:
        done = backup(
            repository, BackupOptions((os.fsencode(folder / "source"),), host=b"host", user=b"user")
        )
    assert done.snapshot is not None
    return done.snapshot.id


def sound(folder: Path, password: bytes = PASSWORD) -> list[str]:
    """Read everything; returns the notes."""
    with opened(folder, password) as repository:
        for snapshot in repository.snapshots():
            node = repository.trees.resolve(snapshot.record.root, os.fsencode(folder / "source"))
            same.in_snapshot(repository, node)
        result = check(repository, read_data=True)
    assert result.ok, result.problems
    return result.notes


# ---- what it is for ---------------------------------------------------------------------------------------------------


def test_new_keys_seal_what_comes_and_the_old_open_what_was(tmp_path: Path, taken: bytes) -> None:
    stolen = bundle_of(tmp_path)
    done = change_keys(tmp_path)
    assert (done.epoch, done.kept, done.ended) == (2, (), ())
    assert epochs(tmp_path, "data", "trees") == [1, 1]
    (tmp_path / "source/new").write_bytes(b"something else" * 99)
    after = repos.snapshot(tmp_path, tmp_path / "source").id
    assert set(epochs(tmp_path, "data", "trees")) == {1, 2}
    with repos.open_(tmp_path) as repository:
        assert [s.id for s in repository.snapshots()] == [taken, after]
        assert (repository.config_problem, repository.config.read_features) == (None, (b"key epochs",))
    assert sound(tmp_path) == []
    thief = Thief(tmp_path, stolen)
    state = thief.events.load()
    assert [s.id for s in state.snapshots] == [taken]
    assert state.newer == 2, "who added the slot, and the snapshot"
    with pytest.raises(OldKeys):
        thief.keys.opener(4, (tmp_path / "repository/config").read_bytes(), "config")
    for path in (tmp_path / "repository").rglob("*"):
        if path.is_file() and b"something else" in path.read_bytes():
            raise AssertionError(path)


def test_other_passwords_end_unless_they_are_given(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        other = repository.slots.add(OTHER, cost=CHEAP, label="colleague")
        _, key = repository.slots.add_recovery(cost=CHEAP)
        ends = repository.slots.add(b"forgotten", cost=CHEAP)
    with pytest.raises(WrongPassword):
        change_keys(tmp_path, PASSWORD, OTHER, b"opens nothing")
    assert epochs(tmp_path, "config") == []
    done = change_keys(tmp_path, PASSWORD, key.encode(), OTHER)
    assert (len(done.kept), done.ended) == (2, (ends,))
    assert other not in slots(tmp_path)
    for password in (PASSWORD, OTHER, key.encode()):
        assert shown(tmp_path, password) == [taken]
    with pytest.raises(WrongPassword):
        shown(tmp_path, b"forgotten")
    with repos.open_(tmp_path) as repository:
        notes = {name: note for name, note in repository.slots.notes() if note is not None}
        assert sorted((n.label, n.is_recovery, n.epoch) for n in notes.values()) == [
            ("", False, 2), ("", True, 2), ("colleague", False, 2),
        ]  # fmt: skip
        assert len(notes) == 3


def test_a_new_password_takes_the_place_of_the_one_in_use(tmp_path: Path, taken: bytes) -> None:
    change_keys(tmp_path, new_password=NEW)
    with pytest.raises(WrongPassword):
        shown(tmp_path)
    assert shown(tmp_path, NEW) == [taken]
    assert sound(tmp_path, NEW) == []


def test_many_times(tmp_path: Path, taken: bytes) -> None:
    stolen, ids = [], [taken]
    for turn in range(4):
        stolen.append(bundle_of(tmp_path))
        assert change_keys(tmp_path).epoch == turn + 2
        (tmp_path / "source" / str(turn)).write_bytes(noise(5000, turn))
        ids.append(back_up(tmp_path))
    for bundle in stolen:
        thief = Thief(tmp_path, bundle)
        thief.publish(EventBody(records.EVENT_FORGET, None, (taken,)))
    assert shown(tmp_path) == ids
    notes = sound(tmp_path)
    assert [note[:24] for note in notes] == ["4 events do not count: t"]
    with repos.open_(tmp_path) as repository:
        assert [r.epoch for r in repository.events.load().rotations] == [1, 2, 3, 4]


def test_the_past_can_still_be_forgotten_tagged_and_brought_back(tmp_path: Path, taken: bytes) -> None:
    second = back_up(tmp_path)
    with repos.open_(tmp_path) as repository:
        repository.events.forget([second])
    change_keys(tmp_path)
    with repos.open_(tmp_path) as repository:
        assert [s.id for s in repository.snapshots()] == [taken]
        repository.events.set_tags(taken, [b"old"])
        assert undelete(repository, repository.events.load().forgotten_snapshots).ok
        assert [s.tags for s in repository.snapshots()] == [(b"old",), ()]
        repository.events.forget([taken])
        assert [s.id for s in repository.snapshots()] == [second]
        assert prune(repository, PruneOptions(Unused(bytes=0))).done
    assert sound(tmp_path) == []


# ---- who has the old keys ----------------------------------------------------------------------------------------------


def test_what_old_keys_make_afterwards_does_not_count(tmp_path: Path, taken: bytes) -> None:
    stolen = bundle_of(tmp_path)
    with repos.open_(tmp_path) as repository:
        record = repository.snapshots()[0].record
    change_keys(tmp_path)
    thief = Thief(tmp_path, stolen)
    forged = records.encode(
        record.__class__(**{**{f: getattr(record, f) for f in record.__struct_fields__}, "time": 7})
    )
    for body in (
        EventBody(records.EVENT_FORGET, None, (taken,)),
        EventBody(records.EVENT_TAGS, None, (taken,), (b"forged",)),
        EventBody(records.EVENT_SNAPSHOT, forged),
        EventBody(records.EVENT_CHECKPOINT, forged),
        EventBody(records.EVENT_KEY_ADDED, None, (b"k" * 32,), (b"l", b"h", b"u")),
        EventBody(records.EVENT_KEYS_CHANGED, None, tuple(thief.events._counted), (b"h", b"u")),
        EventBody(99),
    ):
        thief.publish(body)
    names = {bytes.fromhex(path.name) for path in (tmp_path / "repository/events").iterdir()}
    for _ in range(2):
        watch = Watch()
        with repos.open_(tmp_path, progress=watch) as repository:
            repository.refuse_rollback()
            state = repository.events.load()
            assert [(s.id, s.tags) for s in repository.snapshots()][:1] == [(taken, ())]
            assert (state.late, state.problems, state.missing, state.unknown, state.closed) == (
                7,
                [],
                {},
                0,
                None,
            )
            assert all(head.name not in names or state.late for head in state.heads)
            assert b"k" * 32 not in state.key_notes
        assert [notice[:22] for notice in watch.notices] == ["7 events do not count:"], "said once"
        with repos.open_(tmp_path) as repository:
            assert prune(repository, PruneOptions(Unused(bytes=0))).done
        back_up(tmp_path)  # and the next honest event does not take them up
    assert len(shown(tmp_path)) == 3
    assert [note[:22] for note in sound(tmp_path)] == ["7 events do not count:"]
    for path in (tmp_path / "repository/events").iterdir():  # when somebody tidies up, that is no rollback
        if bytes.fromhex(path.name) not in state_of(tmp_path):
            path.unlink()
    with repos.open_(tmp_path) as repository:
        repository.refuse_rollback()
        assert repository.events.load().late == 0


def state_of(folder: Path) -> dict[bytes, Event]:
    """The events that count."""
    with repos.open_(folder) as repository:
        repository.events.load()
        return repository.events._counted


def test_an_event_kept_back_until_the_keys_were_changed_does_not_count(tmp_path: Path, taken: bytes) -> None:
    """Nor what another of its kind names, or lists as if it had been there at a change of keys."""
    stolen = bundle_of(tmp_path)
    thief = Thief(tmp_path, stolen)
    name = thief.publish(EventBody(records.EVENT_FORGET, None, (taken,)))
    path = tmp_path / "repository/events" / name.hex()
    kept_back = path.read_bytes()
    path.unlink()
    second = Thief(tmp_path, stolen)
    second.publish(EventBody(records.EVENT_KEYS_CHANGED, None, (name,), (b"h", b"u")))
    assert not Thief(tmp_path, stolen).events.load().missing
    with pytest.raises(OldKeys):
        back_up(tmp_path)
    change_keys(tmp_path)
    path.write_bytes(kept_back)
    assert shown(tmp_path) == [taken]
    with repos.open_(tmp_path) as repository:
        assert repository.events.load().late == 1


def test_a_volume_that_lists_what_it_has_not_is_not_relied_on(tmp_path: Path, taken: bytes) -> None:
    """Who knows the key of ids makes a volume that says it has a file which is not there yet."""
    stolen = bundle_of(tmp_path)
    change_keys(tmp_path)
    thief = Thief(tmp_path, stolen)
    content = noise(40_000, 3)
    poison = thief.poison([thief.keys.blob_id(Kind.CONTENT, content)], len(content))
    (tmp_path / "source/target").write_bytes(content)
    for machine in (
        "",
        "elsewhere",
    ):  # one that knew the repository, one that builds an index of what there is
        made = back_up(tmp_path, machine=machine)
        with opened(tmp_path, machine=machine) as repository:
            usable = {v.name: v.usable for v in repository.index.volumes()}
            assert usable.pop(poison) is False
            assert all(usable.values())
            (snapshot,) = (s for s in repository.snapshots() if s.id == made)
            node = repository.trees.resolve(snapshot.record.root, os.fsencode(tmp_path / "source"))
            assert (
                same.differences(same.on_disk(tmp_path / "source"), same.in_snapshot(repository, node)) == []
            )
    Path(thief.storage.path(f"data/{poison.hex()[:2]}/{poison.hex()}")).unlink()
    sound(tmp_path)


def test_an_honest_volume_that_comes_late_is_relied_on_once_it_was_read(tmp_path: Path, taken: bytes) -> None:
    (volume,) = (tmp_path / "repository/data").glob("*/*")
    data = volume.read_bytes()
    volume.unlink()
    change_keys(tmp_path)
    volume.write_bytes(data)
    with repos.open_(tmp_path) as repository:
        repository.synchronise()
        assert bytes.fromhex(volume.name) not in repository.usable_volumes()
    sound(tmp_path)
    with repos.open_(tmp_path) as repository:
        assert bytes.fromhex(volume.name) in repository.usable_volumes()


def test_the_last_event_of_the_old_keys_cannot_be_taken_away(tmp_path: Path, taken: bytes) -> None:
    """Nor all that came since, on a machine that was never here: the key slots name it."""
    before = {path.name for path in (tmp_path / "repository/events").iterdir()}
    change_keys(tmp_path)
    back_up(tmp_path)
    for path in (tmp_path / "repository/events").iterdir():
        if path.name not in before:
            path.unlink()
    with opened(tmp_path, machine="new") as repository:
        with pytest.raises(RolledBack, match="the key slots name it"):
            repository.refuse_rollback()
        assert [s.id for s in repository.snapshots()] == [taken], "what was the head then counts"


@pytest.mark.parametrize("damaged", range(6))
def test_a_damaged_event_takes_nothing_but_itself_away(tmp_path: Path, taken: bytes, damaged: int) -> None:
    """The list of all events that were there stands beside what each of them names."""
    ids = [taken, back_up(tmp_path), back_up(tmp_path)]
    with repos.open_(tmp_path) as repository:
        repository.events.set_tags(taken, [b"t"])
    change_keys(tmp_path)
    path = sorted((tmp_path / "repository/events").iterdir())[damaged]
    path.write_bytes(bytes([path.read_bytes()[0]]) + b"x" + path.read_bytes()[2:])
    with opened(tmp_path, machine="new") as repository:
        state = repository.events.load()
        assert len(state.problems) == 1
        assert len(state.snapshots) >= len(ids) - 1
        assert state.late == 0


# ---- old slots put back, old copies of the config ------------------------------------------------------------------------


def test_while_an_event_cannot_be_read_keys_are_not_changed(tmp_path: Path, taken: bytes) -> None:
    """It would not be among those that were there, and never count again: what was forgotten would be back for good."""
    with opened(tmp_path) as repository:
        repository.events.forget([taken])
        (head,) = repository.events.load().heads
    path = tmp_path / "repository/events" / head.name.hex()
    good = path.read_bytes()
    path.write_bytes(good[:200] + bytes((good[200] ^ 1,)) + good[201:])
    before = slots(tmp_path), sorted(os.listdir(path.parent))
    with pytest.raises(StorageError, match=r"is damaged.* keys were not changed"):
        change_keys(tmp_path)
    assert (slots(tmp_path), sorted(os.listdir(path.parent))) == before
    path.write_bytes(good)
    change_keys(tmp_path)
    with opened(tmp_path) as repository:
        assert repository.snapshots() == []


def test_an_old_slot_reads_what_was_and_writes_nothing(tmp_path: Path, taken: bytes) -> None:
    before = slots(tmp_path)
    change_keys(tmp_path)
    (tmp_path / "source/new").write_bytes(noise(9000, 1))
    after = back_up(tmp_path)
    new = slots(tmp_path)
    heads = {head.name for head in Events.load(opened(tmp_path).events).heads}
    only_old(tmp_path, before)
    watch = Watch()
    with repos.open_(tmp_path, progress=watch) as repository:
        repository.refuse_rollback()
        assert [s.id for s in repository.snapshots()] == [taken]
        assert len(watch.notices) == 1, watch.notices
        assert "the keys of this repository were changed on" in watch.notices[0]
        source = BackupOptions((os.fsencode(tmp_path / "source"),), host=b"host", user=b"user")
        there = {
            path: path.stat().st_mtime_ns for path in (tmp_path / "repository").rglob("*") if path.is_file()
        }
        for write in (
            lambda: backup(repository, source),
            lambda: repository.events.forget([taken]),
            lambda: repository.events.set_tags(taken, [b"t"]),
            lambda: undelete(repository, repository.snapshots()),
            lambda: prune(repository),
            lambda: prune(repository, PruneOptions(dry_run=True)),
            lambda: repository.slots.add(b"x", cost=CHEAP),
            lambda: repository.slots.replace(b"x", cost=CHEAP),
            lambda: repository.slots.add_recovery(cost=CHEAP),
            lambda: repository.slots.remove("0" * 64),
        ):
            with pytest.raises(OldKeys, match="use one that was made since"):
                write()
        assert {path: path.stat().st_mtime_ns for path in there if path.exists()} == there
        result = check(repository, read_data=True)
        assert result.ok, result.problems
        assert any("volumes are sealed with newer keys" in note for note in result.notes)
        assert backup(repository, dataclasses.replace(source, dry_run=True)) is not None
    with pytest.raises(OldKeys):
        change_keys(tmp_path)
    put_back(tmp_path, new)
    with repos.open_(tmp_path) as repository:
        assert heads <= {head.name for head in repository.client.remembered.heads}, (
            "what was seen is not forgotten"
        )
    for machine in ("", "new"):  # of two slots of one password that with the newer keys counts
        assert shown(tmp_path, machine=machine) == [taken, after]
    with repos.open_(tmp_path) as repository:
        assert {name: note.epoch for name, note in repository.slots.notes() if note} == {
            **dict.fromkeys(before, 1), **dict.fromkeys(new, 2),
        }  # fmt: skip
        (note,) = check(repository).notes
        assert note.startswith(f"the key slot {next(iter(before))[:8]} has old keys")
        for name in before:
            repository.slots.remove(name)
        assert check(repository).notes == []


@pytest.mark.parametrize("harm", ["number", "newer"])
def test_an_event_of_old_keys_stops_no_backup(tmp_path: Path, taken: bytes, harm: str) -> None:
    """One file that says the last number there is, in the name of this client, or a version that is not known."""
    thief = Thief(tmp_path, bundle_of(tmp_path))
    with repos.open_(tmp_path) as repository:
        client = repository.client.id
    change_keys(tmp_path)
    last = Event(1 if harm == "number" else 2, client, 2**64 - 1, (), 5, EventBody(99))
    data = seal_record(thief.keys.sealer(L.EVENT, thief.repository, System(), client), records.encode(last))
    (tmp_path / "repository/events" / hashlib.sha256(data).hexdigest()).write_bytes(data)
    assert shown(tmp_path) == [taken]
    ids = [taken, back_up(tmp_path), back_up(tmp_path)]
    assert shown(tmp_path) == ids


def test_an_old_copy_of_the_config_is_not_used(tmp_path: Path, taken: bytes) -> None:
    before = (tmp_path / "repository/config").read_bytes()
    change_keys(tmp_path)
    (tmp_path / "repository/config").write_bytes(before)
    watch = Watch()
    with repos.open_(tmp_path, progress=watch) as repository:
        assert repository.config.read_features == (b"key epochs",)
        assert "sealed with keys that were changed" in watch.notices[0]
        assert [s.id for s in repository.snapshots()] == [taken]
        assert not check(repository).ok
    change_keys(tmp_path)
    assert sound(tmp_path) == []


def test_a_flipped_bit_of_an_epoch_is_damage_and_no_refusal(tmp_path: Path, taken: bytes) -> None:
    change_keys(tmp_path)
    back_up(tmp_path)
    for folder in ("events", "data", "trees"):
        for path in sorted((tmp_path / "repository" / folder).rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                path.write_bytes(data[:21] + bytes([data[21] ^ 4]) + data[22:])
                with opened(tmp_path, machine=path.name) as repository:
                    state = repository.events.load()
                    assert (state.newer, state.closed) == (0, None)
                    result = check(repository)
                    assert result.problems
                    assert {problem.kind for problem in result.problems} & {"event", "volume"}
                path.write_bytes(data)
    assert sound(tmp_path) == []


def test_an_event_of_a_later_epoch_that_nobody_announced_is_unreadable_and_stops_no_backup(
    tmp_path: Path, taken: bytes
) -> None:
    """Storage without any key can put such a file there."""
    path = next((tmp_path / "repository/events").iterdir())
    data = bytearray(path.read_bytes())
    data[20] = 2
    (tmp_path / "repository/events" / hashlib.sha256(data).hexdigest()).write_bytes(data)
    with repos.open_(tmp_path) as repository:
        assert "newer keys" in repository.events.load().problems[0]
        with pytest.raises(OldKeys, match=r"somebody has put that file"):
            change_keys(tmp_path)
    back_up(tmp_path)


# ---- other machines, other processes -------------------------------------------------------------------------------------


def test_another_machine_goes_on_with_what_it_remembers(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as repository:
        repository.slots.add(OTHER, cost=CHEAP)
    ids = [taken, back_up(tmp_path, OTHER, "b")]
    change_keys(tmp_path, PASSWORD, OTHER)
    ids.append(back_up(tmp_path))
    watch = Watch()
    with opened(tmp_path, OTHER, "b", progress=watch) as repository:
        repository.refuse_rollback()
        assert [s.id for s in repository.snapshots()] == ids
        assert watch.notices == []
    ids.append(back_up(tmp_path, OTHER, "b"))
    assert shown(tmp_path) == ids
    assert sound(tmp_path) == []


def test_a_reader_with_old_keys_goes_on_and_notices(tmp_path: Path, taken: bytes) -> None:
    watch = Watch()
    with repos.open_(tmp_path, progress=watch) as reader:
        (snapshot,) = reader.snapshots()
        change_keys(tmp_path)
        (tmp_path / "source/new").write_bytes(noise(9000, 1))
        back_up(tmp_path)
        assert reader.snapshots() == [snapshot]
        assert len(watch.notices) == 1
        reader.synchronise(thorough=True)
        node = reader.trees.resolve(snapshot.record.root, os.fsencode(tmp_path / "source"))
        assert list(same.in_snapshot(reader, node))
        with pytest.raises(OldKeys):
            backup(reader, BackupOptions((os.fsencode(tmp_path / "source"),), host=b"h", user=b"u"))


def test_nothing_is_done_while_somebody_writes(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as writer, writer.writing():
        before = sorted(path for path in (tmp_path / "repository").rglob("*"))
        with pytest.raises(RepositoryLocked, match=f"process {os.getpid()}"):
            change_keys(tmp_path)
        assert [p for p in before if p.parent.name != "locks"] == [
            p for p in sorted((tmp_path / "repository").rglob("*")) if p.parent.name != "locks"
        ]
    with (
        repos.open_(tmp_path) as repository,
        repository.storage.locks.alone(),
        pytest.raises(RepositoryLocked),
    ):
        change_keys(tmp_path)
    assert shown(tmp_path) == [taken]
    change_keys(tmp_path)


def test_what_is_written_while_it_waits_counts(tmp_path: Path, taken: bytes) -> None:
    began, may_end = threading.Event(), threading.Event()

    class Slow(Watch):
        def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
            began.set()
            may_end.wait()

    def work() -> None:
        with opened(tmp_path, machine="b") as repository:
            source = os.fsencode(tmp_path / "source")
            backup(repository, BackupOptions((source,), host=b"host", user=b"user"), progress=Slow())

    class Waits(Watch):
        @property
        def interrupted(self) -> bool:  # asked for at each look at the leases
            may_end.set()
            return False

        @interrupted.setter
        def interrupted(self, value: bool) -> None: ...

    writer = threading.Thread(target=work)
    writer.start()
    began.wait()
    change_keys(tmp_path, patience=60, progress=Waits())
    writer.join()
    assert len(shown(tmp_path)) == 2
    back_up(tmp_path)
    assert sound(tmp_path) == []


@pytest.mark.parametrize("first", ["writer", "rotation"])
def test_an_event_at_the_very_moment_counts_or_is_refused(
    tmp_path: Path, taken: bytes, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Where no lock is seen: one publishes while the other does, each when the other has looked."""
    append = Events._append
    with repos.open_(tmp_path) as other:
        done: list[str] = []

        def between(self: Events, body: EventBody) -> bytes:
            """Each has looked, and then the other is quicker."""
            mine = {"writer": records.EVENT_KEYS_CHANGED, "rotation": records.EVENT_TAGS}[first]
            if body.type == mine and not done:
                done.append(first)
                if first == "writer":
                    append(other.events, EventBody(records.EVENT_TAGS, None, (taken,), (b"t",)))
                else:
                    change_keys(tmp_path, machine="b")
            return append(self, body)

        monkeypatch.setattr(Events, "_append", between)
        if first == "writer":
            change_keys(tmp_path, machine="b")
        else:
            with pytest.raises(OldKeys, match="may not count"):
                other.events.set_tags(taken, [b"t"])
    assert done == [first]
    with opened(tmp_path, machine="b") as repository:
        assert [s.tags for s in repository.snapshots()] == [(b"t",) if first == "writer" else ()]
        assert repository.events.load().late == (first == "rotation")


def test_a_bundle_without_a_key_of_each_epoch_is_damage(tmp_path: Path, taken: bytes) -> None:
    from snapfs.repo.keys import Keys

    change_keys(tmp_path)
    bundle = bundle_of(tmp_path)
    for wrong in (
        [key for key in bundle.keys if (key.name, key.epoch) != (b"tree", 1)],
        [key for key in bundle.keys if (key.name, key.epoch) != (b"config", 2)],
        [*bundle.keys, records.KeyEntry(b"data", 1 << 60, bytes(32))],
    ):
        with pytest.raises(Damaged):
            Keys(records.Bundle(1, 1, tuple(wrong), bundle.config), "slot")


def test_the_same_keys_open_it_without_a_config(tmp_path: Path, taken: bytes) -> None:
    change_keys(tmp_path)
    (tmp_path / "repository/config").unlink()
    assert shown(tmp_path) == [taken]
    Repository.open(
        str(tmp_path / "repository"), PASSWORD, no_cache=True, state_dir=str(tmp_path / "s")
    ).close()
    change_keys(tmp_path)
    assert sound(tmp_path) == []


# ---- the past, too -------------------------------------------------------------------------------------------------------


def test_the_past_can_be_sealed_anew(tmp_path: Path, taken: bytes) -> None:
    stolen = bundle_of(tmp_path)
    (tmp_path / "source/more").write_bytes(noise(200_000, 5))
    ids = [taken, back_up(tmp_path)]
    change_keys(tmp_path)
    ids.append(back_up(tmp_path))
    options = PruneOptions(Unused(), old_keys=True)
    with repos.open_(tmp_path) as repository:
        assert not prune(repository, PruneOptions(Unused())).plan.rewrite, "only if it is asked for"
        assert len(prune(repository, dataclasses.replace(options, most=1)).plan.rewrite) == 0, (
            "as much as may be"
        )
        done = prune(repository, options)
        assert len(done.plan.rewrite) == done.volumes_removed > 2
        assert not prune(repository, options).plan.rewrite
    assert set(epochs(tmp_path, "data", "trees")) == {2}
    assert shown(tmp_path) == ids
    assert sound(tmp_path) == []
    thief = Thief(tmp_path, stolen)
    for path in (tmp_path / "repository").glob("[dt]*/??/*"):
        for kind in (1, 2):
            with pytest.raises((OldKeys, Damaged)):
                thief.keys.opener(kind, path.read_bytes(), "it")


def test_slots_that_come_or_go_meanwhile(
    tmp_path: Path, taken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made with the new keys stays; one that was removed does not come back."""
    with opened(tmp_path) as repository:
        kept = {repository.slots.add(OTHER, cost=CHEAP): OTHER}
        with opened(tmp_path, machine="b") as other:
            other.slots.remove(next(iter(kept)))
        before = slots(tmp_path)
        with pytest.raises(UsageError, match=r"nothing was changed.*removed meanwhile"):
            rotate(repository, PASSWORD, kept)
        assert slots(tmp_path) == before
    append, added = Events._append, []

    def quicker(self: Events, body: EventBody) -> bytes:
        """The new slot is there, and is not announced yet."""
        if body.type == records.EVENT_KEY_ADDED and not added:
            added.append("")
            with opened(tmp_path, machine="b", newest=True) as other:
                added[0] = other.slots.add(NEW, cost=CHEAP)
        return append(self, body)

    monkeypatch.setattr(Events, "_append", quicker)
    done = change_keys(tmp_path)
    assert slots(tmp_path).keys() == {done.slot, *added}
    assert shown(tmp_path, NEW) == [taken]


def test_an_all_but_full_disk_is_said_before_the_old_keys_end(
    tmp_path: Path, taken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = slots(tmp_path)
    monkeypatch.setattr(LocalStorage, "free", lambda self: 40_000)
    with pytest.raises(StorageError, match=r"nothing was changed: the disk has 39 KiB free"):
        change_keys(tmp_path)
    assert slots(tmp_path) == before
    monkeypatch.undo()
    back_up(tmp_path)
    assert change_keys(tmp_path).epoch == 2


def test_the_cache_of_earlier_keys_is_not_backed_up(tmp_path: Path, taken: bytes) -> None:
    with repos.open_(tmp_path) as before:
        assert before.index.volumes()
        change_keys(tmp_path)
        back_up(tmp_path)
        with repos.open_(tmp_path) as repository:
            folder = repository.cache_folder
        assert folder is not None
        assert {"index", "index-2"} <= set(os.listdir(folder)), "one is in use"
        assert Path(folder).parent == tmp_path / "cache"
    back_up(tmp_path)
    assert os.listdir(folder) == ["index-2"], "of no more use"


def test_a_closed_repository_takes_nothing_for_damage(tmp_path: Path, taken: bytes) -> None:
    """Its keys are wiped: a thread that comes late must not remember sound volumes as damaged."""
    with repos.open_(tmp_path) as repository:
        name, (kind, _) = next(iter(repository.volumes.listing().items()))
        repository.close()
        with pytest.raises(RuntimeError, match="wiped"):
            repository.volumes.opener(kind, name)

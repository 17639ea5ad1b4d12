"""New keys for a repository in which some can only back up: these end with the keys they seal to, and vouch for nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.errors import OldKeys, UsageError, WrongPassword
from snapfs.repo.format import labels as L
from snapfs.repo.format import records
from snapfs.repo.format.envelope import Sealer
from snapfs.repo.format.records import Event, EventBody, Head
from snapfs.repo.format.sealed import seal_record
from snapfs.repo.keys import Keys
from snapfs.repo.prune.engine import prune
from snapfs.repo.system import System
from support import repositories as repos
from support.children import in_child
from support.faults import KINDS, Calls, Die, each
from support.machines import ALL, Machine, Notices, Thief, brought, ids, reads_back, state
from support.readable import flip
from support.rotations import bundle_of, change_keys, epochs
from support.torture import Rounds
from support.trees import File, make, noise

TREE = {b"big": File(noise(100_000, 1)), b"small/a": File(b"a" * 100)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    repos.create(tmp_path)
    return make(tmp_path / "source", TREE)


def events(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "repository/events").iterdir()}


def test_such_a_key_ends_with_the_keys_it_seals_to(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    slot = tmp_path / "repository/keys" / machine.slot
    data, first = slot.read_bytes(), machine.snapshot(source)
    done = change_keys(tmp_path)
    assert machine.slot in done.ended
    assert not slot.exists()
    with pytest.raises(WrongPassword):
        machine.open()
    assert ids(tmp_path) == [first.id]
    slot.write_bytes(data)
    notices = Notices()
    with machine.open(progress=notices) as repository:
        repository.snapshots()
    assert any("keys of this repository seem to have been changed" in text for text in notices.said)
    os.utime(tmp_path)  # of a folder above it
    with pytest.raises(OldKeys, match="may not count"):
        machine.snapshot(source)
    assert len(epochs(tmp_path, "trees")) == 2, "this one wrote something, too"
    found = state(tmp_path)
    assert ([s.id for s in found.snapshots], found.late) == ([first.id], 1)
    slot.unlink()
    again = Machine(tmp_path, "again")
    second = again.snapshot(source)
    assert ids(tmp_path) == [first.id, second.id]
    assert set(epochs(tmp_path, "data", "trees")) == {1, 2}
    with repos.open_(tmp_path) as repository:
        prune(repository, dataclasses.replace(ALL, old_keys=True))
    assert set(epochs(tmp_path, "data", "trees")) == {2}, "what it wrote under old keys, too"
    reads_back(tmp_path, source, first, second)


def test_what_does_not_say_what_is_in_it_stays(tmp_path: Path, source: Path) -> None:
    """Written under old keys after their end, and damaged besides: a prune that is to rewrite all of these ends, without it."""
    machine = Machine(tmp_path)
    slot = tmp_path / "repository/keys" / machine.slot
    data, _ = slot.read_bytes(), machine.snapshot(source)
    change_keys(tmp_path)
    before = {path.name for path in (tmp_path / "repository/trees").rglob("*")}
    slot.write_bytes(data)
    os.utime(tmp_path)
    with pytest.raises(OldKeys, match="may not count"):
        machine.snapshot(source)
    slot.unlink()
    with repos.open_(tmp_path) as repository:
        repository.synchronise()
        (late,) = (
            path
            for path in (tmp_path / "repository/trees").rglob("*")
            if path.is_file() and path.name not in before
        )
        flip(late, 8 * (late.stat().st_size - 100))
        prune(repository, dataclasses.replace(ALL, old_keys=True))
    assert late.exists()


def test_one_that_a_killed_change_left_there_says_so(tmp_path: Path, source: Path) -> None:
    """The new keys are in use, and nobody has run `key rotate` again."""
    machine = Machine(tmp_path)
    calls = Calls(tmp_path / "repository/keys", lambda _, kind: kind == "unlink", Die())

    def killed() -> None:
        with calls.installed():
            change_keys(tmp_path)

    assert in_child(killed) != 0
    assert (tmp_path / "repository/keys" / machine.slot).exists()
    with pytest.raises(OldKeys, match="may not count"):
        machine.snapshot(source)


def test_one_that_was_open_already_says_so(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    with machine.open() as repository:
        change_keys(tmp_path)
        options = BackupOptions((os.fsencode(source),), host=b"web1", user=b"user")
        with pytest.raises(OldKeys, match="may not count"):
            backup(repository, options)


def test_it_is_not_taken_over_with_its_password(tmp_path: Path, source: Path) -> None:
    """Else it would open everything from then on."""
    machine = Machine(tmp_path)
    with repos.open_(tmp_path) as repository, pytest.raises(UsageError, match="can only back up"):
        repository.slots.opened_by([machine.password])


def test_an_ended_key_does_not_come_back_with_new_public_keys(tmp_path: Path, source: Path) -> None:
    """Its signing key was granted; what it could seal to now, another machine has."""
    machine = Machine(tmp_path)
    first, stolen = machine.snapshot(source), machine.thief()
    change_keys(tmp_path)
    fresh = Machine(tmp_path, "fresh").thief()
    record = stolen.event(EventBody(records.EVENT_SNAPSHOT, brought(stolen)))
    fresh.publish(record, seed=stolen.keys.signing)
    found = state(tmp_path)
    assert ([s.id for s in found.snapshots], found.refused) == ([first.id], {"its key was removed before": 1})


def old_event(stolen: Keys, repository: bytes, body: EventBody, client: bytes) -> bytes:
    """By somebody who has the keys of epoch 1."""
    sealer = Sealer(stolen.sealing(L.EVENT, 1), L.EVENT, repository, System().salt())
    return seal_record(sealer, records.encode(Event(1, client, 1, (), 5, body)))


def test_it_vouches_for_no_event_of_old_keys(tmp_path: Path, source: Path) -> None:
    """Who has old keys, together with one who has such a machine: the machine names an event that is not there yet, and when a
    whole key has named the machine's, the event comes: it would count if all that is named did."""
    stolen = Keys(bundle_of(tmp_path), "stolen")
    change_keys(tmp_path)
    whole = repos.snapshot(tmp_path, source)
    thief: Thief = Machine(tmp_path).thief()
    forget = EventBody(records.EVENT_FORGET, None, (whole.id,))
    hidden = old_event(stolen, thief.repository, forget, thief.keys.client)
    name = hashlib.sha256(hidden).digest()
    thief.publish(
        thief.event(
            EventBody(records.EVENT_SNAPSHOT, brought(thief)), heads=(Head(thief.keys.client, 1, name),)
        )
    )
    assert name in state(tmp_path).missing, "said, as a loss"
    with repos.open_(tmp_path) as repository:
        repository.refuse_rollback(accept=True)
    repos.snapshot(tmp_path, source)  # names the machine's event
    (tmp_path / "repository/events" / name.hex()).write_bytes(hidden)
    assert whole.id in ids(tmp_path)
    assert state(tmp_path).late == 1


def test_what_it_made_before_the_change_counts_once_it_was_seen(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    before = events(tmp_path)
    machine.snapshot(source)
    (late,) = events(tmp_path).keys() - before.keys()
    data = (tmp_path / "repository/events" / late).read_bytes()
    (tmp_path / "repository/events" / late).unlink()  # has not arrived yet, where the keys are changed
    with repos.open_(tmp_path) as repository:
        repository.events.load()
    change_keys(tmp_path)
    (tmp_path / "repository/events" / late).write_bytes(data)
    found = state(tmp_path)
    assert ([s.id for s in found.snapshots], found.late) == ([first.id], 1)


# ---- keys are added and removed --------------------------------------------------------------------------------------


@pytest.mark.torture
@pytest.mark.parametrize("what", ["add", "remove"])
def test_killed_while_a_key_is_added_or_removed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds, what: str
) -> None:
    """It is there and counts, or is not there; removed, it is gone or still counts; and the same can be done again."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    machine = Machine(tmp_path)
    kept = machine.snapshot(source)
    parts = ("repository", "state")
    for part in parts:
        shutil.copytree(tmp_path / part, tmp_path / "saved" / part)

    def work() -> str:
        with repos.open_(tmp_path, no_cache=True) as repository:
            if what == "remove":
                repository.slots.remove(machine.slot)
                return ""
            return repository.add_backup_only_key(b"another", "another", cost=repos.CHEAP)

    def run(number: int) -> bool:
        for part in parts:
            for entry in os.scandir(tmp_path / part):
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
            shutil.copytree(tmp_path / "saved" / part, tmp_path / part, dirs_exist_ok=True)
        calls = Calls(tmp_path, each(KINDS, number), Die())

        def killed() -> None:
            with calls.installed():
                work()

        died = in_child(killed) != 0
        assert kept.id in ids(tmp_path)
        assert state(tmp_path).problems == []
        slots = {path.name for path in (tmp_path / "repository/keys").iterdir()}
        if what == "remove":
            if died and machine.slot in slots:
                work()
            with pytest.raises(WrongPassword):
                machine.open()
            return died
        new = slots - {path.name for path in (tmp_path / "saved/repository/keys").iterdir()}
        other: Machine = Machine.__new__(Machine)
        other.folder, other.own, other.host, other.password = (
            tmp_path,
            tmp_path / f"other{number}",
            "another",
            b"another",
        )
        if not new:
            assert died
            other.slot = work()
        made = other.snapshot(source)
        assert made.id in ids(tmp_path), "a slot that opens is one whose snapshots count"
        return died

    at_once = [1, 5, 9] if not rounds.long else range(1, 1000)
    for number in at_once:
        rounds.count()
        if not run(number):
            assert number > 8
            break

"""Machines that can only back up (row S8): what they make is read, forgotten and pruned by whoever has the whole key; with all
that they have, nothing of the repository opens; and one who took such a machine cannot touch the backups of others."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from snapfs.repo.backup.engine import backup
from snapfs.repo.backup.options import BackupOptions
from snapfs.repo.check.engine import check
from snapfs.repo.errors import BackupOnly, Damaged, RolledBack, StorageError, UnsupportedFormat, UsageError
from snapfs.repo.format import labels as L
from snapfs.repo.format import recipient, records
from snapfs.repo.format.crypto import verifying_key
from snapfs.repo.format.envelope import Opener, parse_header
from snapfs.repo.format.keyslot import open_slot
from snapfs.repo.format.parity import Builder
from snapfs.repo.format.records import EventBody, Head
from snapfs.repo.format.sealed import open_record
from snapfs.repo.model import Below, Kind, NodeType, VolumeKind
from snapfs.repo.progress import Progress
from snapfs.repo.prune.engine import PruneOptions, prune
from snapfs.repo.repair.snapshots import repair_snapshots
from snapfs.repo.repair.volumes import repair_volumes
from snapfs.repo.repository import Repository
from snapfs.repo.salvage import Salvage
from snapfs.repo.system import System
from snapfs.repo.volumes import object_name
from support import repositories as repos
from support import same
from support.children import in_child
from support.faults import KINDS, Calls, Die, Fault, each
from support.hostile import node
from support.machines import ALL, Machine, Notices, brought, ids, reads_back, state
from support.parts import KEYS, REPOSITORY
from support.readable import flip
from support.torture import Rounds
from support.trees import File, Name, Symlink, make, noise

TREE = {
    b"big": File(noise(300_000, 1)),
    b"kept": File(noise(60_000, 2)),  # below the smallest chunk: one blob, whatever the key for cutting
    b"small/a": File(b"a" * 100, xattrs={"user.large": noise(2000, 3)}),
    b"small/link": Symlink(target=b"a"),
    b"small/name": Name(of=b"small/a"),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    repos.create(tmp_path)
    return make(tmp_path / "source", TREE)


# ---- it backs up -------------------------------------------------------------------------------------------------


def test_the_whole_key_reads_what_it_stored(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    (source / "kept").write_bytes(noise(80_000, 9))
    second = machine.snapshot(source)
    with machine.open() as repository:
        client = repository.client.id
        assert client == repository.keys.client
        assert not repository.keys.can_read
    reads_back(tmp_path, source, second)
    found = state(tmp_path).snapshots
    assert [(s.id, s.client, s.backup_only, s.record.host) for s in found] == [
        (s.id, client, True, b"web1") for s in (first, second)
    ]
    assert state(tmp_path).refused == {}
    for folder in ("data", "trees", "events"):
        wraps = [
            parse_header(p.read_bytes(), "it").wrap
            for p in (tmp_path / "repository" / folder).rglob("*")
            if p.is_file()
        ]
        assert wraps.count(L.WRAP_BACKUP_ONLY) == 2, folder
        assert wraps.count(L.WRAP_REPOSITORY) == (2 if folder == "events" else 0), "the slots were announced"


def test_it_stores_what_is_new_and_nothing_twice(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    machine.snapshot(source)
    (source / "new").write_bytes(noise(50_000, 5))
    totals = machine.snapshot(source).record.totals
    assert totals.data_blobs == 1
    assert totals.bytes_added < 60_000


def test_two_machines_and_a_whole_key_at_one_repository(tmp_path: Path, source: Path) -> None:
    one, two = Machine(tmp_path, "one"), Machine(tmp_path, "two")
    made = [
        one.snapshot(source),
        repos.snapshot(tmp_path, source),
        two.snapshot(source),
        one.snapshot(source),
    ]
    assert (
        made[1].record.totals.data_blobs
        == made[2].record.totals.data_blobs
        == made[0].record.totals.data_blobs
    )
    reads_back(tmp_path, source, *made)
    assert len({s.client for s in state(tmp_path).snapshots}) == 3
    with repos.open_(tmp_path) as repository:
        assert prune(repository, ALL).freed > 0, "what was stored three times is there once"
    reads_back(tmp_path, source, *made)


def test_the_whole_key_forgets_and_prunes_and_it_goes_on(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    (source / "big").write_bytes(noise(300_000, 7))
    machine.snapshot(source)
    with repos.open_(tmp_path) as repository:
        repository.events.forget([first.id])
        result = prune(repository, ALL)
        assert result.volumes_removed > 0
        assert result.volumes_written > 0
    make(source, {b"big": File(noise(300_000, 1))})
    last = machine.snapshot(source)  # relies on nothing that went
    reads_back(tmp_path, source, last)
    assert first.id not in ids(tmp_path)


def test_prune_waits_for_its_lease(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    with repos.open_(tmp_path) as repository:
        repository.events.forget([first.id])
        with machine.open() as other, other.writing():
            result = prune(repository, ALL)
            assert result.in_the_way
            assert result.volumes_removed == 0
        assert prune(repository, ALL).volumes_removed > 0


def test_a_checkpoint_counts_and_is_not_listed(tmp_path: Path, source: Path) -> None:
    class Impatient(Progress):
        def item(self, path: bytes, action: str, size: int = 0) -> None:
            self.interrupted = path.endswith(b"kept")

    machine = Machine(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        machine.snapshot(source, progress=Impatient())
    assert (len(state(tmp_path).checkpoints), ids(tmp_path)) == (1, [])
    last = machine.snapshot(source)
    assert last.record.totals.bytes_added < 70_000, (
        "what was stored before the checkpoint is not stored again"
    )
    reads_back(tmp_path, source, last)


@pytest.mark.parametrize("lost", ["cache", "state", "both"])
def test_what_it_forgot_is_stored_once_more(tmp_path: Path, source: Path, lost: str) -> None:
    machine, notices = Machine(tmp_path), Notices()
    first = machine.snapshot(source)
    for name in ("cache", "state") if lost == "both" else (lost,):
        shutil.rmtree(machine.own / name)
    with machine.open(progress=notices) as repository:
        options = BackupOptions((os.fsencode(source),), b"web1", b"user")
        second = backup(repository, options, notices).snapshot
    assert second is not None
    assert (second.record.totals.data_blobs > 0) == (lost != "state")
    assert any("everything is stored once more" in text for text in notices.said) == (lost == "cache")
    reads_back(tmp_path, source, first, second)


def test_its_own_events_are_missed(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    machine.snapshot(source)
    before = set((tmp_path / "repository/events").iterdir())
    machine.snapshot(source)
    (event,) = set((tmp_path / "repository/events").iterdir()) - before
    data = event.read_bytes()
    event.unlink()
    with machine.open() as repository, pytest.raises(RolledBack, match="this machine has published it"):
        repository.refuse_rollback()
    event.write_bytes(data)
    with machine.open() as repository:
        repository.refuse_rollback()
    event.unlink()
    with machine.open() as repository:
        repository.refuse_rollback(accept=True)
    with machine.open() as repository:
        repository.refuse_rollback()
    machine.snapshot(source)
    assert len(ids(tmp_path)) == 2


def test_a_snapshot_that_lacks_something_is_said(tmp_path: Path, source: Path) -> None:
    """W7 of docs/concurrency.md: it cannot take the snapshot back, so it has to say which it is."""
    machine = Machine(tmp_path)
    place = tmp_path / "repository"

    class Remover(Fault):
        def hit(self, kind: str, do: Any, half: Any) -> Any:
            result = do()
            if any((place / "events").iterdir()) and len(list((place / "events").iterdir())) == 3:
                for path in (place / "data").rglob("*"):
                    if path.is_file():
                        path.unlink()
            return result

    with (
        Calls(place, lambda number, kind: kind == "rename", Remover()).installed(),
        pytest.raises(StorageError) as caught,
    ):
        machine.snapshot(source)
    (made,) = state(tmp_path).snapshots
    assert made.short in str(caught.value)
    assert "cannot take it back" in str(caught.value)
    with repos.open_(tmp_path) as repository:
        repository.events.forget([made.id])
    reads_back(tmp_path, source, machine.snapshot(source))


def test_what_it_cannot_do_is_refused(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    with pytest.raises(BackupOnly, match="can only back up") as caught:
        Repository.open(
            str(tmp_path / "repository"),
            machine.password,
            cache_dir=str(tmp_path / "x"),
            state_dir=str(tmp_path / "x"),
        )
    assert caught.value.exit_code == 13
    with machine.open() as repository:
        assert repository.snapshots() == []
        for attempt in (
            lambda: repository.events.forget([first.id]), lambda: repository.events.undelete([first.id]),
            lambda: repository.events.set_tags(first.id, [b"t"]), lambda: repository.slots.add(b"x", cost=repos.CHEAP),
            lambda: [*repository.volumes.directory(VolumeKind.DATA, *next(
                (name, size) for name, (kind, size) in repository.volumes.listing().items() if kind is VolumeKind.DATA))],
        ):  # fmt: skip
            with pytest.raises(BackupOnly):
                attempt()
        path = (os.fsencode(source),)
        for options in (
            BackupOptions(path, b"other", b"u"),
            BackupOptions(path, b"web1", b"u", parent=first),
        ):
            with pytest.raises((BackupOnly, UsageError)):
                backup(repository, options)
    assert len(list((tmp_path / "repository/events").iterdir())) == 3


# ---- it opens nothing --------------------------------------------------------------------------------------------


def objects(place: Path) -> Iterator[Path]:
    for folder in ("data", "trees", "events"):
        yield from (path for path in (place / folder).rglob("*") if path.is_file())
    yield place / "config"


def opens(data: bytes, secrets: set[bytes]) -> bool:
    """Whether any of these secrets is what this object is sealed with, named key or private key."""
    header = parse_header(data, "it")
    for secret in secrets:
        keys = [secret]
        if header.wrap == L.WRAP_BACKUP_ONLY:
            with contextlib.suppress(Damaged):
                keys = [recipient.sealing_key(recipient.private_key(secret, header.kind), header, "it")]
                keys.append(recipient.sealing_key(secret, header, "it"))
        for key in keys:
            with contextlib.suppress(Damaged):
                Opener(key, data, "it", header.kind)
                return True
    return False


def windows(top: Path) -> set[bytes]:
    """All that may be a key in the files below a folder: the state at every place, the index at every eighth."""
    found: set[bytes] = set()
    for path in top.rglob("*"):
        if path.is_file():
            data, step = path.read_bytes(), 1 if path.name == "client" else 8
            found.update(
                data[at : at + 32] for at in range(0, len(data) - 31, step) if data[at : at + 32].count(0) < 8
            )
    return found


@pytest.mark.torture
def test_nothing_opens_with_all_that_it_has(tmp_path: Path, source: Path, rounds: Rounds) -> None:
    machine, other = Machine(tmp_path), Machine(tmp_path, "other")
    machine.snapshot(source)
    other.snapshot(source)
    repos.snapshot(tmp_path, source)
    stolen = machine.thief()
    known = {key.key for key in stolen.bundle.keys if len(key.key) == 32}
    known |= {stolen.keys.page, stolen.keys.index_tag, *stolen.keys.blob_keys.values()}
    assert len(known) > 10
    known.update(rounds.some(sorted(windows(machine.own)), 100))
    assert len(known) > 100
    files = list(objects(tmp_path / "repository"))
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        header = parse_header(data, "it")
        assert not opens(data, known), path
        with pytest.raises(BackupOnly):
            stolen.keys.opener(header.kind, data, "it")
    with repos.open_(tmp_path) as repository:  # the attempt itself is a sound one
        whole = {key.key for key in open_slot(
            (tmp_path / "repository/keys" / repository.slots.current).read_bytes(), repos.PASSWORD, "slot")[1].keys}  # fmt: skip
    assert all(opens(path.read_bytes(), whole) for path in files)
    assert not whole & {stolen.bundle.keys[2].key, stolen.keys.signing}, "index and signing keys are its own"
    for path in (tmp_path / "repository/keys").iterdir():
        if path.name != machine.slot:
            with pytest.raises(Exception, match="wrong password"):
                open_slot(path.read_bytes(), machine.password, "slot")


def test_every_object_has_a_key_of_its_own_with_a_stuck_random_source(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    system = dataclasses.replace(System(), entropy=lambda count: bytes(count))
    for _ in range(3):
        with machine.open(system=system) as repository:
            backup(repository, BackupOptions((os.fsencode(source),), b"web1", b"u"))
        (source / "kept").write_bytes(os.urandom(1000))
    headers = [parse_header(path.read_bytes(), "it") for path in objects(tmp_path / "repository")]
    own = [h for h in headers if h.wrap == L.WRAP_BACKUP_ONLY]
    assert len(own) == 9
    assert len({h.extra for h in own}) == len({h.salt for h in own}) == len({h.commitment for h in own}) == 9
    # And they are secret where the randomness is not: the seed goes into them.
    salt = bytes(32)
    assert recipient.ephemeral_key(b"a" * 32, salt) != recipient.ephemeral_key(b"b" * 32, salt)


# ---- one who took such a machine ---------------------------------------------------------------------------------


def test_what_it_was_not_granted_does_not_count(tmp_path: Path, source: Path) -> None:
    machine, other = Machine(tmp_path), Machine(tmp_path, "other")
    own, foreign, whole = machine.snapshot(source), other.snapshot(source), repos.snapshot(tmp_path, source)
    thief, victim = machine.thief(), other.thief()
    before = state(tmp_path)
    every = (own.id, foreign.id, whole.id)
    head = before.heads[0]
    fine = EventBody(records.EVENT_SNAPSHOT, brought(thief))
    forged = [
        thief.event(EventBody(records.EVENT_FORGET, None, every)),
        thief.event(EventBody(records.EVENT_UNDELETE, None, every)),
        thief.event(EventBody(records.EVENT_TAGS, None, every, (b"t",))),
        thief.event(EventBody(records.EVENT_KEY_REMOVED, None, (bytes.fromhex(other.slot),))),
        thief.event(EventBody(records.EVENT_KEY_ADDED, None, (bytes(32), bytes(16), verifying_key(bytes(32))),
                              (b"", b"", b"", records.KEY_BACKUP_ONLY, b"any"))),
        thief.event(EventBody(records.EVENT_SNAPSHOT, brought(thief, host=b"other"))),
        thief.event(EventBody(records.EVENT_SNAPSHOT, brought(thief, complete=False))),
        thief.event(EventBody(records.EVENT_SNAPSHOT, b"junk")),
        thief.event(EventBody(records.EVENT_SNAPSHOT, None)),
        thief.event(fine, client=victim.keys.client),
        thief.event(fine, client=whole.client),
        thief.event(fine, heads=(head,)),
        thief.event(fine, heads=(Head(thief.keys.client, 1, head.name),)),
    ]  # fmt: skip
    for event in forged:
        thief.publish(event)
    thief.publish(
        victim.event(EventBody(records.EVENT_SNAPSHOT, brought(victim)))
    )  # signed by another machine
    thief.publish(thief.event(fine), seed=bytes(32))
    thief.publish(thief.event(fine), signature=b"")
    thief.publish(thief.event(fine), signature=bytes(64))
    after, notices = state(tmp_path), Notices()
    assert sum(after.refused.values()) == len(forged) + 4
    assert len(after.refused) == 5
    for what in (
        "snapshots",
        "checkpoints",
        "forgotten",
        "unknown",
        "problems",
        "missing",
        "key_notes",
        "heads",
        "sequence",
    ):
        assert getattr(after, what) == getattr(before, what), what
    with repos.open_(tmp_path, progress=notices) as repository:
        repository.snapshots()
        repository.snapshots()
        assert [text for text in notices.said if "do not count" in text] == notices.said
        assert len(notices.said) == 1
        assert any("do not count" in text for text in check(repository).notes)
        assert prune(repository, PruneOptions()).done, "nothing of it stands in the way of a prune"


def test_events_that_are_none_do_not_count(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    machine.snapshot(source)
    thief, before = machine.thief(), ids(tmp_path)
    names = [
        thief.publish(record)
        for record in (b"", b"\xc0", b"\x96\x01", b"\x91" * 1000, records.encode((1, b"x")))
    ]
    after = state(tmp_path)
    assert [s.id for s in after.snapshots] == before
    assert len(after.problems) == len(names), "damaged: anybody can put such a file there"


def test_what_a_newer_version_says_stops_a_prune_and_no_reader(tmp_path: Path, source: Path) -> None:
    """A prune would remove what it needs.  Once its key was removed, it is in nobody's way."""
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    thief = machine.thief()
    later = msgspec.msgpack.encode([2, thief.keys.client, b"x"])
    unknown = thief.event(EventBody(99, b"x"))
    snapshot = msgspec.msgpack.encode([2, {}])
    for event in (later, unknown, thief.event(EventBody(records.EVENT_SNAPSHOT, snapshot))):
        name = thief.publish(event)
        found = state(tmp_path)
        assert ([s.id for s in found.snapshots], found.unknown, found.problems) == ([first.id], 1, [])
        with repos.open_(tmp_path) as repository, pytest.raises(UnsupportedFormat):
            prune(repository, ALL)
        (tmp_path / "repository/events" / name.hex()).unlink()
    with repos.open_(tmp_path) as repository:
        repository.slots.remove(machine.slot)
    thief.publish(later)
    assert state(tmp_path).unknown == 0


def test_numbers_that_it_says_of_others_are_not_heard(tmp_path: Path, source: Path) -> None:
    """The last number there is, in the name of another client: he could add nothing any more."""
    thief, whole = Machine(tmp_path).thief(), repos.snapshot(tmp_path, source)
    event = thief.event(EventBody(records.EVENT_SNAPSHOT, brought(thief)), client=whole.client)
    thief.publish(msgspec.structs.replace(event, sequence=2**64 - 1))
    again = repos.snapshot(tmp_path, source)
    assert ids(tmp_path) == [whole.id, again.id]


def test_files_of_a_format_that_is_not_known_stop_a_prune_and_nobody_else(
    tmp_path: Path, source: Path
) -> None:
    """Nobody vouches for a header: it needs no key, only a place to write."""
    first = repos.snapshot(tmp_path, source)
    for folder in ("events", "data", "trees"):
        objects = tmp_path / "repository" / folder
        good = next(path for path in sorted(objects.rglob("*")) if path.is_file()).read_bytes()
        for at in (8, 12, 16, 17):  # version, features, suite, wrap kind
            data = good[:at] + bytes([good[at] + 3]) + good[at + 1 :]
            name = hashlib.sha256(data).hexdigest()
            path = objects / name if folder == "events" else objects / name[:2] / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    second = repos.snapshot(tmp_path, source)
    with repos.open_(tmp_path) as repository:
        assert [s.id for s in repository.snapshots()] == [first.id, second.id]
        result = check(repository, read_data=True)
        assert [problem.kind for problem in result.problems] == 4 * ["event"] + 8 * ["volume"]
        assert all("install a newer snapfs" in problem.message for problem in result.problems)
        with pytest.raises(StorageError, match="cannot be read"):
            prune(repository, ALL)
    Machine(tmp_path).snapshot(source)


def test_an_event_is_signed_in_its_own_object(tmp_path: Path, source: Path) -> None:
    """Whoever learned what is in one (by a leak, say) and has the public keys cannot put it into another."""
    machine = Machine(tmp_path)
    machine.snapshot(source)
    thief, count = machine.thief(), len(ids(tmp_path))
    with repos.open_(tmp_path) as repository:
        path = next(
            p
            for p in (tmp_path / "repository/events").iterdir()
            if parse_header(p.read_bytes(), "").wrap == 2
        )
        opener = repository.keys.opener(L.EVENT, path.read_bytes(), "it")
        signed = records.decode(records.Signed, open_record(opener, path.read_bytes()), "it")
    path.unlink()
    thief.publish(signed.record, signature=signed.signature)
    assert len(ids(tmp_path)) == count - 1


def test_what_it_says_again_stays_whose_it_was(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path, "host")
    whole = repos.snapshot(tmp_path, source)
    thief = machine.thief()
    again, heads = EventBody(records.EVENT_SNAPSHOT, records.encode(whole.record)), []
    for _ in range(5):  # the last ones count after the real one
        heads = [Head(thief.keys.client, 1, thief.publish(thief.event(again, heads=heads)))]
    (found,) = state(tmp_path).snapshots
    assert (found.client, found.backup_only) == (whole.client, False)


def test_poisoned_volumes_do_no_harm(tmp_path: Path, source: Path) -> None:
    """A volume says that it has the blobs of files that others will back up, and has something else."""
    machine = Machine(tmp_path)
    machine.snapshot(make(tmp_path / "own", {b"x": File(b"x")}))
    thief = machine.thief()
    blobs = [
        (Kind.CONTENT, thief.keys.blob_id(Kind.CONTENT, (source / name).read_bytes()), noise(1000, number))
        for number, name in enumerate(("kept", "small/a"))
    ]
    with repos.open_(tmp_path) as repository:
        repository.synchronise()
        poison = thief.volume(VolumeKind.DATA, blobs)
        repository.synchronise()
        volume = next(v for v in repository.index.volumes() if v.name == poison)
        assert (volume.usable, volume.verified, volume.reliable) == (True, False, False)
        assert [repository.index.holder(blob) for _, blob, _ in blobs] == [None, None]
        assert repository.index.get(blobs[0][1]) is not None, (
            "it may be read from, where nothing else is there"
        )
    whole, other = repos.snapshot(tmp_path, source), Machine(tmp_path, "other").snapshot(source)
    with repos.open_(tmp_path) as repository:
        for snapshot in (whole, other):
            at = repository.trees.resolve(snapshot.record.root, os.fsencode(source))
            assert same.differences(same.on_disk(source), same.in_snapshot(repository, at)) == []
        result = prune(repository, ALL)
        assert object_name(VolumeKind.DATA, poison) not in {p for p, _ in repository.storage.list("data")}, (
            result
        )
    reads_back(tmp_path, source, whole, other)


def test_a_poisoned_volume_is_not_believed_because_parity_makes_it_whole(
    tmp_path: Path, source: Path
) -> None:
    """Its writer damages it himself, and gives the parity for it."""
    thief = Machine(tmp_path).thief()
    content = (source / "kept").read_bytes()
    blob = thief.keys.blob_id(Kind.CONTENT, content)
    poison = thief.volume(VolumeKind.DATA, [(Kind.CONTENT, blob, noise(len(content), 5))])
    path = tmp_path / "repository" / object_name(VolumeKind.DATA, poison)
    data = path.read_bytes()
    builder = Builder(len(data))
    builder.update(data)
    with repos.open_(tmp_path) as repository:
        repository.volumes.parity.write(poison, builder.parity(poison))
        flip(path, 8 * (len(data) - 40))
        repair_volumes(repository, [poison.hex()])
        assert [v for v in repository.index.volumes() if v.name == poison and v.reliable] == []
        assert repository.index.holder(blob) is None
    reads_back(tmp_path, source, repos.snapshot(tmp_path, source))


def test_a_poisoned_volume_that_is_alive_costs_only_its_own_snapshot(tmp_path: Path, source: Path) -> None:
    """Its tree needs it, so that prune keeps it beside the honest copy, or finds that it does not open."""
    machine = Machine(tmp_path)
    thief = machine.thief()
    content = (source / "kept").read_bytes()
    blob = thief.keys.blob_id(Kind.CONTENT, content)
    thief.volume(VolumeKind.DATA, [(Kind.CONTENT, blob, noise(len(content), 5))])
    page = records.encode_page(
        0, [msgspec.Raw(records.encode(node(b"kept", size=len(content), blobs=((blob, len(content)),))))]
    )
    root = thief.keys.blob_id(Kind.DIRECTORY, page)
    thief.volume(VolumeKind.TREE, [(Kind.DIRECTORY, root, page)])
    top = node(b"", NodeType.DIRECTORY, root=root, below=Below(1, 1, len(content)))
    thief.publish(thief.event(EventBody(records.EVENT_SNAPSHOT, brought(thief, root=top))))
    whole = repos.snapshot(tmp_path, source)
    with repos.open_(tmp_path) as repository:
        assert len(repository.snapshots()) == 2
        prune(repository, ALL)
        at = repository.trees.resolve(whole.record.root, os.fsencode(source))
        assert same.differences(same.on_disk(source), same.in_snapshot(repository, at)) == []
        stolen = next(s for s in repository.snapshots() if s.backup_only)
        kept = repository.trees.resolve(stolen.record.root, b"/kept")
        assert repository.contents.read(kept, 0, len(content)) == content, "the honest copy serves both"
    reads_back(tmp_path, source, whole)


def test_only_what_was_read_whole_is_relied_on(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path)
    machine.snapshot(source)
    with repos.open_(tmp_path) as repository:
        assert not any(v.verified for v in repository.index.volumes())
        assert check(repository).ok
        assert not any(v.verified for v in repository.index.volumes()), "directories alone prove nothing"
        assert check(repository, read_data=True).ok
        assert all(v.reliable for v in repository.index.volumes())
    assert repos.snapshot(tmp_path, source).record.totals.data_blobs == 0
    shutil.rmtree(tmp_path / "cache")
    with repos.open_(tmp_path) as repository:
        assert not any(
            v.verified
            for v in repository.index.volumes()
            if repository.volumes.is_backup_only(v.kind, v.name)
        )


def test_nobody_takes_its_word_for_what_is_unchanged(tmp_path: Path, source: Path) -> None:
    """Same host, same paths, and times of files as they are: the whole key reads the files all the same."""
    machine = Machine(tmp_path, "host")
    content = (source / "kept").stat()
    thief = machine.thief()
    thief.publish(
        thief.event(EventBody(records.EVENT_SNAPSHOT, brought(thief, paths=(os.fsencode(source),))))
    )
    machine.snapshot(source)
    whole = repos.snapshot(tmp_path, source)
    assert whole.record.parent is None
    assert whole.record.totals.files_unmodified == 0
    assert content.st_size
    reads_back(tmp_path, source, whole)


def test_what_is_made_of_its_snapshots_is_trusted_no_more_than_they_are(tmp_path: Path, source: Path) -> None:
    """`repair snapshots` seals anew what such a machine said of modes and of what is unchanged; so does --parent."""
    machine = Machine(tmp_path, "host")
    lost = machine.snapshot(source)
    for path in (tmp_path / "repository/data").rglob("*"):
        if path.is_file():
            path.unlink()
    with repos.open_(tmp_path) as repository:
        (mended,) = repair_snapshots(repository, repository.snapshots()).snapshots
    assert mended.new is not None
    assert [s.id for s in state(tmp_path).snapshots if s.backup_only] == [lost.id, mended.new.id]
    whole = repos.snapshot(tmp_path, source)
    assert (whole.record.parent, whole.record.totals.files_unmodified) == (None, 0)
    upon = repos.snapshot(tmp_path, source, parent=mended.new)
    assert {s.id: s.backup_only for s in state(tmp_path).snapshots}[upon.id]


def test_a_snapshot_without_its_blobs_is_named(tmp_path: Path, source: Path) -> None:
    """It stops a prune, as any damage does, until it is forgotten; `check` says which it is."""
    machine = Machine(tmp_path)
    thief, whole = machine.thief(), repos.snapshot(tmp_path, source)
    top = node(b"", NodeType.DIRECTORY, root=bytes(32), below=Below(1, 1, 0))
    thief.publish(thief.event(EventBody(records.EVENT_SNAPSHOT, brought(thief, root=top))))
    with repos.open_(tmp_path) as repository:
        stolen = next(s for s in repository.snapshots() if s.backup_only)
        with pytest.raises(Damaged):
            prune(repository, ALL)
        result = check(repository)
        assert {a.snapshot for a in result.affected} == {stolen.short}
        repository.events.forget([stolen.id])
        prune(repository, ALL)
    reads_back(tmp_path, source, whole)


# ---- its key is removed ------------------------------------------------------------------------------------------


def test_what_was_seen_before_its_key_was_removed_stays(tmp_path: Path, source: Path) -> None:
    machine, other = Machine(tmp_path), Machine(tmp_path, "other")
    slot = tmp_path / "repository/keys" / machine.slot
    data, seen = slot.read_bytes(), machine.snapshot(source)
    with repos.open_(tmp_path) as repository:
        repository.slots.remove(machine.slot)
    assert not slot.exists()
    slot.write_bytes(data)  # a copy of it, put back
    machine.snapshot(source)
    kept = other.snapshot(source)
    found = state(tmp_path)
    assert [s.id for s in found.snapshots] == [seen.id, kept.id]
    assert found.refused == {"its key was removed before": 1}
    with repos.open_(tmp_path) as repository:  # removed again by one who has seen all that
        repository.slots.remove(machine.slot)
    assert ids(tmp_path) == [seen.id, kept.id]
    slot.write_bytes(data)
    machine.snapshot(source)
    assert ids(tmp_path) == [seen.id, kept.id]
    reads_back(tmp_path, source, seen, kept)


def test_removed_on_two_machines_at_once(tmp_path: Path, source: Path) -> None:
    """Either has seen what the other has not: what any of them had seen stays."""
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    events = tmp_path / "repository/events"
    with repos.open_(tmp_path) as repository:
        old = {path.name for path in events.iterdir()}
        repository.events.load()
        repository.events.remove_key(bytes.fromhex(machine.slot))
        (removal,) = {path.name for path in events.iterdir()} - old
        hidden = (events / removal).read_bytes()
        (events / removal).unlink()
    second = machine.snapshot(source)
    elsewhere = Repository.open(
        str(tmp_path / "repository"),
        repos.PASSWORD,
        cache_dir=str(tmp_path / "c2"),
        state_dir=str(tmp_path / "s2"),
    )
    with elsewhere:
        elsewhere.events.remove_key(bytes.fromhex(machine.slot))
    (events / removal).write_bytes(hidden)
    third = machine.snapshot(source)
    assert set(ids(tmp_path)) == {first.id, second.id}
    assert third.id not in ids(tmp_path)


def test_removed_again_by_one_who_saw_more(tmp_path: Path, source: Path) -> None:
    """It does not bring back what the first removal ended: else whoever tidies up would undo it."""
    machine = Machine(tmp_path)
    first = machine.snapshot(source)
    events = tmp_path / "repository/events"
    with repos.open_(tmp_path) as repository:
        old = {path.name for path in events.iterdir()}
        repository.events.load()
        repository.events.remove_key(bytes.fromhex(machine.slot))
        (removal,) = {path.name for path in events.iterdir()} - old
        hidden = (events / removal).read_bytes()
        (events / removal).unlink()
    second = machine.snapshot(source)
    elsewhere = Repository.open(
        str(tmp_path / "repository"),
        repos.PASSWORD,
        cache_dir=str(tmp_path / "c2"),
        state_dir=str(tmp_path / "s2"),
    )
    with elsewhere:
        elsewhere.events.set_tags(second.id, [b"seen"])  # an event that names it
        (events / removal).write_bytes(hidden)
        assert [s.id for s in elsewhere.events.load().snapshots] == [first.id]
        elsewhere.events.remove_key(bytes.fromhex(machine.slot))
    assert ids(tmp_path) == [first.id]


def test_no_key_of_a_stranger_counts(tmp_path: Path, source: Path) -> None:
    """The storage, which knows everything that stands in the clear, and somebody's slot of another repository."""
    machine = Machine(tmp_path)
    machine.snapshot(source)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    repos.create(elsewhere)
    stranger = Machine(elsewhere).thief()
    stranger.place, stranger.repository = tmp_path / "repository", machine.thief().repository
    before = ids(tmp_path)
    stranger.publish(stranger.event(EventBody(records.EVENT_SNAPSHOT, brought(stranger))))
    found = state(tmp_path)
    assert [s.id for s in found.snapshots] == before
    assert found.problems, "sealed to another repository's keys: it does not even open"


# ---- damage and faults -------------------------------------------------------------------------------------------


@pytest.mark.torture
def test_a_header_is_made_again_from_any_flipped_bit(tmp_path: Path, source: Path, rounds: Rounds) -> None:
    machine = Machine(tmp_path)
    machine.snapshot(source)
    with repos.open_(tmp_path) as repository:
        for kind in VolumeKind:
            name, size = next((n, s) for n, (k, s) in repository.volumes.listing().items() if k is kind)
            whole = sorted(blob for blob, _, _ in repository.volumes.directory(kind, name, size))
            path = tmp_path / "repository" / object_name(kind, name)
            data = path.read_bytes()
            for bit in rounds.some(range(8 * L.BACKUP_ONLY_HEADER_SIZE), 6):
                flipped = bytearray(data)
                flipped[bit // 8] ^= 1 << bit % 8
                path.write_bytes(flipped)
                repository.volumes._openers.clear()
                saved = sorted(saved.id for saved in Salvage(repository.volumes, kind, name).blobs())
                assert saved == whole, bit
            path.write_bytes(data)


@pytest.mark.torture
def test_killed_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: Rounds) -> None:
    """A backup by such a machine: what it had committed reads back, the next one works, nothing is left over."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="snapfs-test-", dir=fast) as home:
        folder = Path(home)
        source = make(tmp_path / "source", TREE)
        repos.create(folder)
        machine = Machine(folder)
        first, before = machine.snapshot(source), same.on_disk(source)
        make(source, {b"big": File(noise(250_000, 8)), b"new": File(noise(40_000, 9))})
        parts = ("repository", "state", "web1")
        for part in parts:
            shutil.copytree(folder / part, folder / "saved" / part)

        def reset() -> None:
            for part in parts:
                for entry in os.scandir(folder / part):
                    shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
                shutil.copytree(folder / "saved" / part, folder / part, dirs_exist_ok=True)

        def run(number: int) -> bool:
            reset()
            shutil.rmtree(folder / "cache", ignore_errors=True)
            calls = Calls(folder, each(KINDS, number), Die())

            def work() -> None:
                with calls.installed():
                    machine.snapshot(source)

            died = in_child(work) != 0
            with repos.open_(folder, no_cache=True) as repository:
                assert repository.events.load().problems == []
                shown = {s.id: s for s in repository.snapshots()}
                assert first.id in shown
                assert len(shown) <= 2
                for key, snapshot in shown.items():
                    at = repository.trees.resolve(snapshot.record.root, os.fsencode(source))
                    meant = before if key == first.id else same.on_disk(source)
                    assert same.differences(meant, same.in_snapshot(repository, at)) == []
            made = machine.snapshot(source)
            reads_back(folder, source, made)
            assert os.listdir(folder / "repository/tmp") == []
            return died

        with Calls(folder).installed() as counted:
            machine.snapshot(source)
        total = len(counted.seen)
        assert total > 20
        assert not run(total + 20)
        for number in rounds.some(range(1, total + 1), 4):
            run(number)


@pytest.mark.torture
def test_any_bytes_sealed_to_the_whole_key_open_as_they_were(rounds: Rounds) -> None:
    """The format's property: what was sealed opens for who has the named key, in this object alone, and for nobody else."""
    for seed in rounds.seeds(40):
        chance = random.Random(seed)
        kind = chance.choice(list(L.PUBLIC_KEYS))
        named, salt = chance.randbytes(32), chance.randbytes(32)
        sealer = recipient.sealer_to(
            recipient.public_key(named, kind),
            chance.randbytes(32),
            kind,
            REPOSITORY,
            salt,
            chance.randrange(1, 1 << 32),
        )
        body = chance.randbytes(chance.randrange(1000))
        head, sealed = sealer.frame(sealer.number(), L.FRAME_RECORD, L.STORED, 1, len(body), body)
        header = parse_header(sealer.header, "it")
        assert header.encode() == sealer.header
        key = recipient.sealing_key(recipient.private_key(named, kind), header, "it")
        opener = Opener(key, sealer.header + head, "it", kind, REPOSITORY)
        assert opener.frame_header(0, head).plain == len(body)
        assert opener.body(0, sealed) == body
        assert sealer.opener(sealer.header, "it", kind, REPOSITORY).body(0, sealed) == body
        other = chance.choice([k for k in L.PUBLIC_KEYS if k != kind])
        changed = bytearray(sealer.header)
        changed[chance.randrange(20, len(changed))] ^= 1 << chance.randrange(8)
        for wrong_key, wrong_header in (
            (recipient.sealing_key(recipient.private_key(named, other), header, "it"), sealer.header),
            (recipient.sealing_key(recipient.private_key(chance.randbytes(32), kind), header, "it"), sealer.header),
            (named, sealer.header), (key, bytes(changed)),
        ):  # fmt: skip
            with pytest.raises(Damaged):
                Opener(wrong_key, wrong_header, "it", kind, REPOSITORY).body(0, sealed)
    assert KEYS.can_read


# ---- what it keeps of its own last snapshots ---------------------------------------------------------------------


def many(folder: Path, count: int) -> Path:
    return make(folder, {b"d%d/f%04d" % (n % 7, n): File(b"%d" % n * 50) for n in range(count)})


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    repos.create(tmp_path)
    source, machine = many(tmp_path / "source", 600), Machine(tmp_path)
    (source / "large").write_bytes(noise(3_000_000, 1))
    first = machine.snapshot(source)
    second = machine.snapshot(source)
    assert second.record.parent == first.id
    totals = second.record.totals
    assert (totals.files_unmodified, totals.data_blobs) == (601, 0)
    assert totals.dirs_unmodified >= 7  # those above may be others' too
    (source / "d3/f0003").write_bytes(b"changed")
    (source / "d5/f0005").unlink()
    third = machine.snapshot(source)
    assert (third.record.totals.files_unmodified, third.record.totals.files_changed) == (599, 1)
    with machine.open() as repository:
        result = backup(
            repository, BackupOptions((os.fsencode(source),), b"web1", b"user", skip_if_unchanged=True)
        )
        assert result.skipped
    reads_back(tmp_path, source, third)
    other = machine.snapshot(source / "d1")
    assert other.record.parent is None, "other paths: another snapshot to go on from"


@pytest.mark.torture
def test_what_is_lost_of_it_is_read_again(tmp_path: Path, rounds: Rounds) -> None:
    repos.create(tmp_path)
    source, machine = many(tmp_path / "source", 300), Machine(tmp_path)
    machine.snapshot(source)
    (pages,) = machine.own.rglob("pages")
    with machine.open() as repository:  # closes it: all is in one file
        repository.earlier([b"x"])
    whole = pages.read_bytes()
    assert pages.stat().st_mode & 0o77 == 0
    for seed in rounds.seeds(6):
        chance = random.Random(seed)
        harmed = bytearray(whole)
        match chance.randrange(4):
            case 0:
                harmed[chance.randrange(len(harmed))] ^= 1 << chance.randrange(8)
            case 1:
                at = chance.randrange(0, len(harmed), 4096)
                harmed[at : at + 4096] = chance.randbytes(4096)
            case 2:
                del harmed[chance.randrange(len(harmed)) :]
            case _:
                harmed[:100] = bytes(100)
        pages.write_bytes(harmed)
        last = machine.snapshot(source)
        assert last.record.totals.files == 300
        assert last.record.totals.data_blobs == 0
    reads_back(tmp_path, source, last)


def test_what_was_pruned_meanwhile_is_read_and_stored_again(tmp_path: Path) -> None:
    """Its own pages say that all is unchanged; the volumes that had it are gone."""
    repos.create(tmp_path)
    source, machine = many(tmp_path / "source", 300), Machine(tmp_path)
    first = machine.snapshot(source)
    with repos.open_(tmp_path) as repository:
        repository.events.forget([first.id])
        prune(repository, ALL)
        assert not repository.volumes.listing()
    second = machine.snapshot(source)
    assert second.record.totals.files_unmodified == 300 or second.record.totals.data_blobs > 0
    reads_back(tmp_path, source, second)
    machine.snapshot(source)
    reads_back(tmp_path, source, second)


def test_it_keeps_no_more_than_the_last_ones_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapfs.repo.own_pages._LEAST", 2)
    repos.create(tmp_path)
    source, machine = many(tmp_path / "source", 300), Machine(tmp_path)

    def count() -> int:
        with machine.open() as repository:
            assert repository.own_pages is not None
            row = repository.own_pages._row("SELECT count(*) FROM page")
            assert row is not None
            return int(row[0])

    machine.snapshot(source)
    needed = count()
    assert needed > 10
    for turn in range(5):
        for n in range(0, 300, 20):
            (source / f"d{n % 7}/f{n:04}").write_bytes(b"%d" % turn)
        last = machine.snapshot(source)
        assert count() <= 3 * needed + 2
    assert machine.snapshot(source).record.totals.files_unmodified == 300
    reads_back(tmp_path, source, last)


def test_what_it_keeps_opens_with_its_own_key_alone(tmp_path: Path) -> None:
    repos.create(tmp_path)
    source, machine = make(tmp_path / "source", {b"canary-name": File(b"canary-content")}), Machine(tmp_path)
    machine.snapshot(source)
    found = b"".join(path.read_bytes() for path in machine.own.rglob("*") if path.is_file())
    assert len(found) > 4096
    assert b"canary" not in found
    assert os.fsencode(source.name) not in found


def test_a_page_that_was_damaged_is_replaced(tmp_path: Path) -> None:
    """Else every file would be read each time from then on."""
    repos.create(tmp_path)
    source, machine = many(tmp_path / "source", 300), Machine(tmp_path)
    assert machine.snapshot(source).record.totals.files_new == 300
    (pages,) = machine.own.rglob("pages")
    with contextlib.closing(sqlite3.connect(pages)) as base, base:
        base.execute("UPDATE page SET data = zeroblob(50)")
    assert machine.snapshot(source).record.totals.files_unmodified == 0
    assert machine.snapshot(source).record.totals.files_unmodified == 300


def test_own_pages_that_fail_while_they_are_swept_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is committed by then."""
    monkeypatch.setattr("snapfs.repo.own_pages._LEAST", 0)
    repos.create(tmp_path)
    source, machine = many(tmp_path / "source", 30), Machine(tmp_path)

    class Failing:
        def __init__(self, base: sqlite3.Connection) -> None:
            self._base = base

        def __getattr__(self, name: str) -> Any:
            return getattr(self._base, name)

        def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
            if sql == "SELECT id, data FROM snapshot":
                raise sqlite3.DatabaseError("database disk image is malformed")
            return self._base.execute(sql, values)

    with machine.open() as repository:
        own = repository.own_pages
        assert own is not None
        assert own._base is not None
        own._base = Failing(own._base)  # type: ignore[assignment]
        options = BackupOptions((os.fsencode(source),), host=os.fsencode(machine.host), user=b"user")
        assert backup(repository, options).snapshot is not None
    assert machine.snapshot(source).record.totals.files == 30

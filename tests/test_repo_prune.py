"""prune removes what no snapshot needs, and nothing else; what it says it would free is what it frees."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.repo import quiet
from snapfs.repo.check.engine import check
from snapfs.repo.errors import (
    BlobMissing,
    RepositoryLocked,
    SnapshotNotFound,
    StorageError,
    UnsupportedFormat,
)
from snapfs.repo.format.records import EventBody
from snapfs.repo.model import KiB, VolumeKind
from snapfs.repo.packing import BlobWriter
from snapfs.repo.prune.engine import PruneOptions, PruneResult, prune
from snapfs.repo.prune.plan import Plan, Scatter, Unused
from snapfs.repo.query.stats import Mode, stats
from snapfs.repo.repair.parity import keep_parity
from snapfs.repo.repository import Repository
from snapfs.repo.state import StoredSnapshot
from snapfs.repo.storage.local import LocalStorage
from snapfs.repo.storage.local_object import LocalObject
from snapfs.repo.storage.locks import Lease, Locks
from snapfs.repo.system import System
from snapfs.repo.usage import VolumeUse, live_snapshots, usage
from support import repositories, same
from support.sources import CHUNKS, Desk, Watch
from support.trees import File, Symlink, make, noise

NONE = Unused(bytes=0)
ANY = Unused()
BASE = {
    b"big": File(noise(700_000, 1)),
    b"kept/a": File(noise(60_000, 2)),
    b"kept/b": File(b"b" * 300, xattrs={"user.large": noise(2000, 3)}),
    b"kept/link": Symlink(target=b"a"),
    b"sparse": File(pieces={0: noise(3000, 4), 900_000: noise(2000, 5)}, size=1_000_000),
    **{b"many/%03d" % n: File(noise(400, 100 + n)) for n in range(100)},
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # power cuts are the subject of test_crash_states


class Kept(Desk):
    """Remembers what each snapshot has to hold."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, BASE, volume_size=512 * KiB)
        self.trees: dict[bytes, same.Tree] = {}

    def take(self, *paths: Path, **options: Any) -> StoredSnapshot:
        made = self.snapshot(*paths, **options)
        self.trees[made.id] = same.on_disk(paths[0] if paths else self.source)
        return made

    def forget(self, *gone: StoredSnapshot) -> None:
        with self.open() as repository:
            repository.events.forget([s.id for s in gone])
        for one in gone:
            del self.trees[one.id]

    def prune(
        self, unused: Unused = NONE, agreed: Callable[[Plan], bool] = lambda _: True, **more: Any
    ) -> PruneResult:
        with self.open() as repository:
            return prune(repository, PruneOptions(unused=unused, **more), Watch(), agreed)

    def size(self) -> int:
        return sum(path.stat().st_size for kind in ("data", "trees") for path in self.volumes(kind).values())

    def sound(self) -> None:
        """Every snapshot reads back, for this client and for one that has no index; nothing is damaged."""
        for where in ("", "stranger"):
            with self.stranger(where) if where else self.open() as repository:
                shown = {s.id: s for s in repository.snapshots()}
                assert shown.keys() == self.trees.keys()
                for key, snapshot in shown.items():
                    node = repository.trees.resolve(snapshot.record.root, os.fsencode(self.source))
                    assert same.differences(self.trees[key], same.in_snapshot(repository, node)) == []
                result = check(repository, read_data=True)
                assert result.ok, result.problems
        assert os.listdir(self.folder / "repository/tmp") == []

    def stranger(self, name: str) -> Repository:
        """Another client."""
        return Repository.open(
            str(self.folder / "repository"), repositories.PASSWORD,
            cache_dir=str(self.folder / name / "cache"), state_dir=str(self.folder / name / "state"),
        )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def aged(desk: Kept) -> tuple[StoredSnapshot, StoredSnapshot, StoredSnapshot]:
    """Three snapshots: the first shares half with the others, the second has a file of its own."""
    first = desk.take()
    make(
        desk.source,
        {b"big": File(noise(350_000, 1) + noise(350_000, 7)), b"only in two": File(noise(3_000_000, 8))},
    )
    second = desk.take()
    (desk.source / "only in two").unlink()
    make(desk.source, {b"many/%03d" % n: File(noise(400, 500 + n)) for n in range(0, 100, 2)})
    return first, second, desk.take()


def test_what_nothing_needs_goes_and_what_is_needed_stays(desk: Kept) -> None:
    first, second, _ = aged(desk)
    before = desk.size()
    desk.forget(second)
    result = desk.prune()
    assert result.done
    assert result.volumes_removed > 0
    assert before - desk.size() == result.freed > 500_000
    desk.sound()
    desk.forget(first)
    result = desk.prune()
    assert result.freed > 300_000
    desk.sound()
    assert desk.prune().plan.remove == []


def test_what_was_said_before_is_what_is_freed(desk: Kept) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    before = desk.size()
    plans: list[Plan] = []
    dry = desk.prune(dry_run=True)
    assert not dry.done
    assert desk.size() == before
    result = desk.prune(agreed=lambda plan: plans.append(plan) or True)
    assert plans[0].freed == dry.plan.freed == result.plan.freed
    assert result.freed == before - desk.size()
    # Padding, and blobs that compress otherwise together.
    assert abs(result.freed - result.plan.freed) < 0.08 * before
    with desk.open() as repository:
        repository.synchronise()
        now = usage(repository, live_snapshots(repository.events.load()), Watch())
        assert now.unused == result.unused
        assert now.size == desk.size()
        assert now.unused < 0.02 * now.size


def test_so_much_unused_may_stay(desk: Kept) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    plan = desk.prune(ANY, dry_run=True).plan
    assert plan.rewrite == []
    assert plan.remove
    half = Unused(bytes=plan.left // 2)
    some = desk.prune(half, dry_run=True).plan
    everything = desk.prune(NONE, dry_run=True).plan
    assert 0 < len(some.rewrite) <= len(everything.rewrite)
    assert some.left <= plan.left // 2
    least = min(use.volume.size for use in everything.rewrite)
    bounded = desk.prune(NONE, most=least, dry_run=True).plan
    assert bounded.read <= least < everything.read
    result = desk.prune(half)
    assert result.unused <= plan.left // 2
    desk.sound()


def test_many_small_volumes_are_merged(desk: Kept) -> None:
    for n in range(12):
        make(desk.source, {b"day/%02d" % n: File(noise(3000, 900 + n))})
        desk.take()
    before = {kind: len(desk.volumes(kind)) for kind in ("data", "trees")}
    result = desk.prune(ANY)
    assert result.volumes_removed >= 20
    after = {kind: len(desk.volumes(kind)) for kind in ("data", "trees")}
    assert after["data"] <= before["data"] - 10
    assert after["trees"] <= before["trees"] - 10
    desk.sound()
    assert desk.prune(ANY).volumes_removed == 0


def test_the_next_backup_stores_nothing_again(desk: Kept) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    desk.prune()
    again = desk.backup()
    assert again.totals.bytes_stored <= 16 * KiB, "only the folders above have changed"
    assert again.totals.files_unmodified == again.totals.files
    # And what was removed is stored again when it comes back.
    make(desk.source, {b"only in two": File(noise(3_000_000, 8))})
    assert again.snapshot is not None
    desk.trees[again.snapshot.id] = desk.trees[next(iter(desk.trees))]
    assert desk.backup(force=True, dry_run=True).totals.bytes_added > 590_000
    desk.take()
    desk.sound()


# ---- who else is there -----------------------------------------------------------------------------------------------


def test_while_a_writer_is_there_nothing_is_removed_and_afterwards_it_is(desk: Kept) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    before = desk.size()
    with desk.open() as other, other.writing():
        result = desk.prune()
        assert [w.process for w in result.in_the_way] == [os.getpid()]
        assert result.volumes_removed == 0
        assert result.bytes_left > 0
        assert desk.size() == before
    result = desk.prune()
    assert result.in_the_way == []
    assert result.freed > 0
    desk.sound()


def test_a_writer_that_begins_while_it_rewrites(desk: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new volumes are there, the old ones stay; the next prune removes these and rewrites nothing again."""
    first, second, _ = aged(desk)
    desk.forget(first, second)
    taken: list[Lease] = []
    flush = BlobWriter.flush
    locks = Locks(str(desk.folder / "repository"))

    def flush_and_begin(self: BlobWriter) -> None:
        flush(self)
        taken.append(Lease(locks))

    monkeypatch.setattr(BlobWriter, "flush", flush_and_begin)
    result = desk.prune()
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    assert result.bytes_written > 0
    assert result.bytes_left > 0
    desk.sound()
    taken[0].release()
    result = desk.prune()
    assert result.bytes_written == 0
    assert result.bytes_removed > 0
    desk.sound()
    assert desk.prune().plan.remove == []


def test_one_prune_at_a_time(desk: Kept) -> None:
    desk.take()
    with desk.open() as repository, repository.storage.locks.alone(), pytest.raises(RepositoryLocked):
        desk.prune()
    desk.prune()


@pytest.mark.parametrize("when", ["planned", "rewritten"])
def test_a_snapshot_that_is_committed_meanwhile_keeps_what_it_needs(
    desk: Kept, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A backup finds blobs that were dead when prune marked, relies on them, and is done before prune looks at leases."""
    first, second, _ = aged(desk)
    desk.forget(first, second)
    took: list[StoredSnapshot] = []
    flush = BlobWriter.flush

    def come_back() -> None:
        if not took:
            make(desk.source, {b"only in two": File(noise(3_000_000, 8)), b"big": File(noise(700_000, 1))})
            monkeypatch.setattr(BlobWriter, "flush", flush)
            took.append(desk.take())
            # What was wholly dead is gone by then, but not what lies in volumes that are being rewritten.
            most = 100_000 if when == "planned" else 3_500_000
            assert took[0].record.totals.bytes_added < most, "it was to find them"

    if when == "planned":
        desk.prune(agreed=lambda _: come_back() or True)
    else:

        def flush_and_come(self: BlobWriter) -> None:
            flush(self)
            come_back()

        monkeypatch.setattr(BlobWriter, "flush", flush_and_come)
        desk.prune()
    assert took
    desk.sound()
    desk.prune()
    desk.sound()


def test_a_snapshot_comes_back_before_a_prune_and_not_after(desk: Kept) -> None:
    first, second, third = aged(desk)
    trees = dict(desk.trees)
    desk.forget(first, second)
    with desk.open() as repository:
        assert [s.id for s in repositories.revive(repository, [second.id, third.id])] == [second.id]
    desk.trees[second.id] = trees[second.id]
    desk.prune()
    desk.sound()
    with desk.open() as repository, pytest.raises(SnapshotNotFound, match="prune has removed"):
        repositories.revive(repository, [first.id])
    desk.sound()


def test_a_snapshot_that_comes_back_amid_a_prune_is_whole(desk: Kept) -> None:
    first, second, _ = aged(desk)
    trees = dict(desk.trees)
    desk.forget(first, second)

    def agreed(_: Plan) -> bool:
        with desk.open() as repository:
            repositories.revive(repository, [first.id])
        desk.trees[first.id] = trees[first.id]
        return True

    assert desk.prune(agreed=agreed).done
    desk.sound()
    desk.prune()
    desk.sound()


def test_another_client_reads_on_through_a_prune(desk: Kept) -> None:
    first, second, third = aged(desk)
    with desk.stranger("mount") as mount:
        shown = next(s for s in mount.snapshots() if s.id == third.id)
        node = mount.trees.resolve(shown.record.root, os.fsencode(desk.source))
        assert mount.contents.read(mount.trees.resolve(node, b"kept/a"), 0, 10)
        desk.forget(first, second)
        assert desk.prune().volumes_written > 0
        assert same.differences(desk.trees[third.id], same.in_snapshot(mount, node)) == []
    with desk.stranger("mount") as mount:
        result = check(mount)
        assert result.ok, result.problems
        assert any("no snapshot needs anything" in note for note in result.notes)
        assert not any("no snapshot needs anything" in note for note in check(mount).notes), "said for ever"
    desk.sound()


def test_the_same_client_reads_on_without_building_its_index_anew(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = aged(desk)
    with desk.open() as mount:
        node = mount.trees.resolve(third.record.root, os.fsencode(desk.source))
        mount.contents.read(mount.trees.resolve(node, b"kept/a"), 0, 10)
        desk.forget(first, second)
        assert desk.prune().volumes_written > 0
        rebuilt: list[bool] = []
        synchronise = mount.synchronise
        monkeypatch.setattr(
            mount.blobs, "_refresh", lambda thorough: rebuilt.append(thorough) or synchronise(thorough)
        )
        assert same.differences(desk.trees[third.id], same.in_snapshot(mount, node)) == []
        assert True not in rebuilt


# ---- doubts ----------------------------------------------------------------------------------------------------------


def test_an_event_of_an_unknown_kind_stops_it(desk: Kept) -> None:
    first, *_ = aged(desk)
    desk.forget(first)
    with desk.open() as repository:
        repository.events.publish(EventBody(77))
    before = desk.size()
    with pytest.raises(UnsupportedFormat, match="install a newer snapfs"):
        desk.prune()
    assert desk.size() == before


def test_a_damaged_event_stops_it(desk: Kept) -> None:
    first, second, _ = aged(desk)
    event = max((desk.folder / "repository/events").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    desk.forget(first, second)
    data = bytearray(event.read_bytes())
    data[200] ^= 1
    event.write_bytes(data)
    before = desk.size()
    with pytest.raises(StorageError, match="nothing was removed"):
        desk.prune()
    assert desk.size() == before


@pytest.mark.parametrize("kind", ["data", "trees"])
def test_anything_that_is_missing_stops_it(desk: Kept, kind: str) -> None:
    first, second, third = aged(desk)
    desk.forget(first, second)
    with desk.open() as repository:
        repository.synchronise()
        found = usage(repository, [third], Watch())
        needed = next(
            u.volume
            for u in found.volumes.values()
            if u.live_blobs and u.volume.name.hex() in desk.volumes(kind)
        )
    desk.volumes(kind)[needed.name.hex()].unlink()
    before = desk.size()
    with pytest.raises(BlobMissing):
        desk.prune()
    assert desk.size() == before


def test_a_volume_that_vanishes_meanwhile_stops_it(desk: Kept) -> None:
    first, second, third = aged(desk)
    desk.forget(first, second)
    with desk.open() as repository:
        found = usage(repository, [third], Watch())
        needed = max(found.volumes.values(), key=lambda use: (use.live_blobs == use.blobs, use.live)).volume
    path = (desk.volumes("data") | desk.volumes("trees"))[needed.name.hex()]

    def agreed(_: Plan) -> bool:
        path.rename(desk.folder / "elsewhere")
        return True

    before = desk.size() - needed.size
    with pytest.raises(StorageError, match="vanished"):
        desk.prune(ANY, agreed=agreed)
    assert desk.size() == before
    (desk.folder / "elsewhere").rename(path)
    desk.prune()
    desk.sound()


def test_a_volume_that_does_not_open_stays(desk: Kept) -> None:
    first, second, third = aged(desk)
    desk.forget(first, second)
    plan = desk.prune(dry_run=True).plan
    victim = next(use.volume for use in plan.rewrite if use.volume.name.hex() in desk.volumes("data"))
    path = desk.volumes("data")[victim.name.hex()]
    data = bytearray(path.read_bytes())
    with desk.open() as repository:
        found = usage(repository, [third], Watch())
        at = next(
            at
            for _, at in repository.index.entries()
            if at.volume == victim.number and found.kept.has_blob(at)
        )
    data[at.frame_offset + 40] ^= 1
    path.write_bytes(data)
    desk.prune()
    assert path.exists(), "what is damaged may still be of use to repair"
    data[at.frame_offset + 40] ^= 1
    path.write_bytes(data)
    desk.sound()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class Stops(Watch):
    """Interrupts a backup at an entry."""

    def __init__(self, at: bytes) -> None:
        super().__init__()
        self._at = at

    def item(self, path: bytes, action: str, size: int = 0) -> None:
        super().item(path, action, size)
        self.interrupted = self.interrupted or path.endswith(self._at)


def interrupted(desk: Kept) -> None:
    with pytest.raises(KeyboardInterrupt):
        desk.backup(progress=Stops(b"many/050"))


def test_the_checkpoint_of_an_interrupted_backup_is_kept(desk: Kept) -> None:
    interrupted(desk)
    assert desk.prune().plan.remove == []
    again = desk.backup()
    assert again.totals.files_unmodified > 50
    assert again.totals.bytes_added < 200_000
    assert again.snapshot is not None
    desk.trees[again.snapshot.id] = same.on_disk(desk.source)
    make(desk.source, {b"big": File(noise(700_000, 77))})
    interrupted(desk)
    desk.take()  # the checkpoint is of no use any more
    with desk.open() as repository:
        assert len(live_snapshots(repository.events.load())) == 2
    desk.sound()


def test_of_a_checkpoint_whatever_is_left_is_enough(desk: Kept) -> None:
    """Its pages may be gone: it was superseded, pruned, and what superseded it was forgotten.  A snapshot that shares the rest of
    its pages must not suffer from them being marked in part."""
    interrupted(desk)
    full = desk.take()
    make(desk.source, {b"many/000": File(noise(400, 4711))})
    other = desk.take(force=True)
    desk.forget(full)
    desk.prune()
    desk.sound()
    desk.forget(other)
    with desk.open() as repository:
        assert live_snapshots(repository.events.load()), "the checkpoint counts again"
    desk.prune()
    make(desk.source, {b"many/000": File(noise(400, 100))})
    desk.take()
    desk.prune()
    desk.sound()


# ---- a full disk -----------------------------------------------------------------------------------------------------


def test_on_a_full_disk_the_dead_go_without_a_byte_written(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = aged(desk)
    (desk.source / "much").write_bytes(
        noise(3_000_000, 77)
    )  # some volumes are wholly dead, however it is packed
    fourth = desk.take()
    (desk.source / "much").unlink()
    desk.take()
    desk.forget(first, second, fourth)

    def no_room(self: LocalObject, *parts: bytes) -> None:
        raise StorageError("repository: cannot write: No space left on device", errno.ENOSPC)

    monkeypatch.setattr(LocalObject, "write", no_room)
    before, dead = desk.size(), desk.prune(dry_run=True).plan.removed
    with pytest.raises(StorageError, match="No space left"):
        desk.prune()
    assert before - desk.size() == dead > 200_000, "what is dead needs no room to go"
    desk.sound()


def test_with_room_for_one_volume_it_rewrites_one_after_the_other(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        make(desk.source, {b"mix/%d-%02d" % (n, i): File(noise(20_000, 1000 * n + i)) for i in range(20)})
        desk.take()
        # Four of each are in the last snapshot, so that every volume but its own has a little.
        for i in range(20):
            if i % 5:
                (desk.source / f"mix/{n}-{i:02d}").unlink()
    make(desk.source, {b"mix/last": File(noise(20_000, 6))})
    desk.take()
    desk.forget(*(s for s in _snapshots(desk)[:-1]))
    plan = desk.prune(dry_run=True).plan
    assert len(plan.rewrite) > 2
    most = max(use.used for use in plan.rewrite) + 40 * KiB
    assert sum(use.used for use in plan.rewrite) > 1.5 * most
    room = desk.size() - plan.removed + most
    write = LocalObject.write

    def bounded(self: LocalObject, *parts: bytes) -> None:
        taken = desk.size() + sum(p.stat().st_size for p in (desk.folder / "repository/tmp").iterdir())
        if taken + sum(len(part) for part in parts) > room:
            raise StorageError("repository: cannot write: No space left on device", errno.ENOSPC)
        write(self, *parts)

    monkeypatch.setattr(LocalObject, "write", bounded)
    remove_all = LocalStorage.remove_all
    removals: list[int] = []

    def counted(self: LocalStorage, names: Any) -> None:
        names = list(names)
        removals.append(len(names))
        remove_all(self, names)
        nonlocal room
        room = min(room, desk.size() + most)

    monkeypatch.setattr(LocalStorage, "remove_all", counted)
    watch = Watch()
    with desk.open() as repository:
        result = prune(repository, PruneOptions(unused=NONE), watch)
    assert any("one volume after the other" in notice for notice in watch.notices)
    assert len(removals) > 2
    assert result.unused < 0.1 * desk.size()
    desk.sound()


def _snapshots(desk: Kept) -> list[StoredSnapshot]:
    with desk.open() as repository:
        return repository.snapshots()


# ---- leases ----------------------------------------------------------------------------------------------------------


def foreign(desk: Kept, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lease of another machine whose lock is not seen here."""
    with monkeypatch.context() as patch:
        patch.setattr("snapfs.repo.storage.locks._machine", lambda: "f" * 16)
        lease = Lease(Locks(str(desk.folder / "repository")))
    os.close(lease._fd)
    return Path(lease.path)


def test_the_lease_of_a_dead_writer_of_this_machine_is_swept_at_once(desk: Kept) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    lease = Lease(Locks(str(desk.folder / "repository")))
    os.close(lease._fd)  # as the kernel does when a process ends
    assert desk.prune().freed > 0
    assert not Path(lease.path).exists()


def test_one_that_may_be_alive_elsewhere_is_waited_for_a_day_by_a_clock_that_nobody_sets(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    path = foreign(desk, monkeypatch)
    hour = 3600 * 10**9

    def at(hours: float, boot: bytes = b"this boot", wall: int = 0) -> PruneResult:
        system = System(uptime=lambda: int(hours * hour), boot_id=boot, now=lambda: 10**18 + wall)
        with desk.open(system=system) as repository:
            return prune(repository, PruneOptions(unused=NONE), Watch())

    assert [(w.here, w.held) for w in at(1).in_the_way] == [(False, False)]
    assert at(20, wall=10**18).in_the_way
    os.utime(path)  # it renewed it
    assert at(26).in_the_way
    assert at(2, b"another boot").in_the_way
    assert at(25, b"another boot").in_the_way
    result = at(26.1, b"another boot")
    assert result.in_the_way == []
    assert result.freed > 0
    assert not path.exists()
    desk.sound()


def test_on_a_file_system_that_others_may_have_mounted_a_free_lease_is_not_a_dead_one(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged(desk)
    lease = Lease(Locks(str(desk.folder / "repository")))
    os.close(lease._fd)
    monkeypatch.setattr("snapfs.repo.storage.locks._is_local", lambda place: False)
    with desk.open() as repository:
        (writer,) = repository.storage.locks.writers()
    assert (writer.here, writer.held) == (True, False)


def test_a_writer_that_waits_at_the_gate_is_in_nobodys_way_and_sees_what_is_gone(desk: Kept) -> None:
    import threading

    aged(desk)
    locks = Locks(str(desk.folder / "repository"))
    got: list[Lease] = []
    with locks.shut():
        thread = threading.Thread(target=lambda: got.append(Lease(locks)))
        thread.start()
        while not any(name.endswith(".lease") for name in os.listdir(desk.folder / "repository/locks")):
            pass
        thread.join(0.2)
        assert got == []
        assert locks.writers() == []
    thread.join(10)
    assert [w.held for w in locks.writers()] == [True]
    got[0].release()
    assert locks.writers() == []


def test_a_writer_that_was_given_up_notices_before_its_commit(desk: Kept) -> None:
    """Frozen for more than a day, on a machine whose locks are not seen: what it relied on is pruned, it makes no snapshot."""
    first, second, _ = aged(desk)
    make(desk.source, {b"only in two": File(noise(3_000_000, 8))})
    desk.forget(first, second)
    flush = BlobWriter.flush
    with pytest.MonkeyPatch.context() as patch:

        def flush_and_freeze(self: BlobWriter) -> None:
            flush(self)
            patch.setattr(BlobWriter, "flush", flush)
            _give_up_and_prune(desk)

        patch.setattr(BlobWriter, "flush", flush_and_freeze)
        with pytest.raises(StorageError, match="no snapshot was made"):
            desk.backup()
    desk.sound()
    desk.take()
    desk.sound()


def test_a_writer_that_was_given_up_amid_its_commit_takes_its_snapshot_back(desk: Kept) -> None:
    first, second, _ = aged(desk)
    make(desk.source, {b"only in two": File(noise(3_000_000, 8))})
    desk.forget(first, second)
    put = LocalStorage.put
    with pytest.MonkeyPatch.context() as patch:

        def freeze_and_put(self: LocalStorage, name: str, data: bytes, check: Any = lambda _: None) -> None:
            patch.setattr(LocalStorage, "put", put)
            _give_up_and_prune(desk)
            put(self, name, data, check)

        patch.setattr(LocalStorage, "put", freeze_and_put)
        with pytest.raises(StorageError, match="took it for dead"):
            desk.backup()
    desk.sound()
    desk.take()
    desk.sound()


def _give_up_and_prune(desk: Kept) -> None:
    for path in (desk.folder / "repository/locks").glob("*.lease"):
        path.unlink()
    assert desk.prune().freed > 500_000


# ---- the index -------------------------------------------------------------------------------------------------------


def test_the_index_forgets_what_is_gone_and_gives_no_number_twice(desk: Kept) -> None:
    first, second, _ = aged(desk)
    with desk.open() as repository:
        before = {v.name: v.number for v in repository.index.volumes()}
        blobs = repository.index.count()
    desk.forget(first, second)
    assert desk.prune().volumes_removed > 0
    with desk.open() as repository:
        after = {v.name: v.number for v in repository.index.volumes()}
        assert after.keys() == {bytes.fromhex(n) for n in (*desk.volumes("data"), *desk.volumes("trees"))}
        assert repository.index.count() < blobs
        new = {number for name, number in after.items() if name not in before}
        assert not new & set(before.values())
        top = max(after, key=lambda name: after[name])
        repository.index.forget([top])
    with desk.open() as repository:
        repository.synchronise()
        assert {v.name: v.number for v in repository.index.volumes()}[top] > after[top]


def test_a_lease_without_a_folder_for_it(desk: Kept) -> None:
    """Some ways of copying leave empty folders behind."""
    desk.take()
    for path in (desk.folder / "repository/locks").iterdir():
        path.unlink()
    (desk.folder / "repository/locks").rmdir()
    assert desk.prune().done
    desk.take()
    desk.sound()


def test_a_grace_of_a_day() -> None:
    assert quiet.GRACE == 24 * 3600 * 10**9


def test_a_check_that_a_prune_overtakes_finds_no_damage(desk: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)
    listed = 0
    monkeypatch.setattr("snapfs.repo.storage.descriptors._LIMIT", 0)  # what is open can be read on

    class Pruning(Watch):
        def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
            nonlocal listed
            if name == "check volumes":
                listed += 1
                if listed == 1:
                    assert desk.prune().volumes_written > 0

    for client in ("stranger", ""):
        listed = 0
        with desk.stranger(client) if client else desk.open() as repository:
            result = check(repository, read_data=True, progress=Pruning())
            assert result.ok, result.problems
            assert repository.client.remembered.damaged == ()
        if client:
            assert listed == 2, "it was not overtaken: the test shows nothing"
            desk.take()
            make(desk.source, {b"big": File(noise(700_000, 99))})
            gone = desk.take()
            make(desk.source, {b"big": File(noise(350_000, 99) + noise(350_000, 98))})
            desk.take()
            desk.forget(gone)


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_goes_only_after_the_other_was_read(desk: Kept) -> None:
    """One client found a volume damaged and stored its blobs anew; another, which does not know of that, prunes."""
    desk.take()
    damaged = max(desk.volumes("data").values(), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    with desk.open() as repository:
        assert not check(repository, read_data=True).ok
    before = desk.volumes("data").keys()
    desk.take()
    assert desk.volumes("data").keys() - before, "stored anew"
    with desk.stranger("other") as repository:
        result = prune(repository, PruneOptions(unused=NONE), Watch())
        assert result.done
    with desk.stranger("third") as repository:
        for snapshot in repository.snapshots():
            node = repository.trees.resolve(snapshot.record.root, os.fsencode(desk.source))
            assert same.differences(desk.trees[snapshot.id], same.in_snapshot(repository, node)) == []


def test_a_copy_in_a_damaged_volume_spares_none(desk: Kept) -> None:
    """What comes back amid a prune has one copy in a volume found damaged, and one in a volume that is to go."""
    first = desk.take()
    damaged = max(desk.volumes("data").values(), key=lambda path: path.stat().st_size)
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:1000] + bytes([sound[1000] ^ 1]) + sound[1001:])
    with desk.open() as repository:
        assert not check(repository, read_data=True).ok
    second = desk.take()
    shutil.rmtree(desk.source)
    make(desk.source, {b"other": File(noise(1000, 99))})
    desk.take()
    trees = dict(desk.trees)
    desk.forget(first, second)

    def agreed(_: Plan) -> bool:
        with desk.open() as repository:
            repositories.revive(repository, [second.id])
        return True

    desk.prune(agreed=agreed)
    with desk.stranger("third") as repository:
        node = repository.trees.resolve(second.record.root, os.fsencode(desk.source))
        assert same.differences(trees[second.id], same.in_snapshot(repository, node)) == []


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("other_stays", [False, True])
def test_what_comes_back_amid_a_prune_keeps_the_copy_that_opens(
    desk: Kept, other_stays: bool, parity: bool
) -> None:
    """Of two copies, one of them damaged without this machine knowing it, both were to go, or the sound one alone.  One that only
    its parity opens is none."""
    if parity:
        with desk.open() as repository:
            keep_parity(repository)
    first = desk.take()
    damaged = max(desk.volumes("data").values(), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    with desk.open() as repository:
        assert not check(repository, read_data=True).ok
    second = desk.take()
    shutil.rmtree(desk.source)
    make(desk.source, {b"other": File(noise(1000, 99))})
    desk.take()
    tree = desk.trees[second.id]
    desk.forget(first, second)

    def agreed(plan: Plan) -> bool:
        with desk.open() as repository:
            repositories.revive(repository, [second.id])
        if other_stays:
            plan.remove[:] = [use for use in plan.remove if use.volume.name.hex() != damaged.name]
        return True

    with desk.stranger("other") as repository:
        prune(repository, PruneOptions(unused=NONE), Watch(), agreed)
    shutil.rmtree(desk.folder / "repository/parity", ignore_errors=True)
    with desk.stranger("third") as repository:
        node = repository.trees.resolve(second.record.root, os.fsencode(desk.source))
        assert same.differences(tree, same.in_snapshot(repository, node)) == []


def test_a_prune_whose_lease_is_gone_ends_and_holds_nobody_up(desk: Kept) -> None:
    first, second, _ = aged(desk)
    desk.forget(first, second)

    def agreed(_: Plan) -> bool:
        for path in (desk.folder / "repository/locks").glob("*.lease"):
            path.unlink()
        return True

    with pytest.raises(StorageError, match="took this prune for dead"):
        desk.prune(agreed=agreed)
    desk.sound()
    assert desk.prune().freed > 0
    desk.sound()


def test_a_copy_in_a_volume_that_is_rewritten_goes_only_after_the_other_was_read(desk: Kept) -> None:
    """The sound copy lies beside what is live in part: its volume is not removed, but rewritten without it."""
    part = make(desk.folder / "part", {b"x": File(noise(60_000, 70))})
    desk.take(part)
    (damaged,) = desk.volumes("data").values()
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    with desk.open() as repository:
        assert not check(repository, read_data=True).ok
    make(part, {b"dead": File(noise(90_000, 71)), b"live": File(noise(90_000, 72))})
    healed = desk.take(part)
    (part / "dead").unlink()
    last = desk.take(part)
    desk.forget(healed)
    with desk.stranger("other") as repository:
        found = usage(repository, live_snapshots(repository.events.load()), Watch())
        (beside,) = (use for use in found.volumes.values() if use.copies)
        assert beside.live_blobs, "or this shows nothing"
        assert prune(repository, PruneOptions(unused=NONE), Watch()).done
    with desk.stranger("third") as repository:
        node = repository.trees.resolve(last.record.root, os.fsencode(part))
        assert same.differences(desk.trees[last.id], same.in_snapshot(repository, node)) == []


def test_what_is_moved_does_not_rest_on_a_copy_that_nobody_read(desk: Kept) -> None:
    """The sound copy lies in a small volume, which is merged with others; the damaged one in a volume that stays."""
    part = make(desk.folder / "part", {b"xyz"[n : n + 1]: File(noise(80_000, 80 + n)) for n in range(3)})
    doomed = desk.take(part)
    (part / "z").unlink()
    desk.take(part)
    (damaged,) = desk.volumes("data").values()
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    with desk.open() as repository:
        assert not check(repository, read_data=True).ok
    (part / "y").unlink()
    for n in range(10):
        make(part, {b"more/%d" % n: File(noise(3000, 90 + n))})
        last = desk.take(part)
    desk.forget(doomed)
    with desk.stranger("other") as repository:
        options = PruneOptions(unused=ANY, scatter=Scatter(None))
        plan = prune(repository, options, Watch()).plan
        assert len([use for use in plan.rewrite if use.volume.kind is VolumeKind.DATA]) == 10
        assert damaged.exists(), "or this shows nothing"
    with desk.stranger("third") as repository:
        node = repository.trees.resolve(last.record.root, os.fsencode(part))
        assert same.differences(desk.trees[last.id], same.in_snapshot(repository, node)) == []


# ---- what lies scattered ---------------------------------------------------------------------------------------------

TIDY = Scatter(0.15, least=0)


def scattered(desk: Kept, turns: int = 6, size: int = 14_000) -> StoredSnapshot:
    """Sixty small files, of which some change before each snapshot; all snapshots stay.  Returns the newest."""
    make(desk.source, {b"text/%02d" % n: File(noise(size, 2000 + n)) for n in range(60)})
    made = desk.take()
    for turn in range(1, turns):
        changed = range(turn, 60, 11)
        make(desk.source, {b"text/%02d" % n: File(noise(size, 2000 + 100 * turn + n)) for n in changed})
        made = desk.take()
    return made


def opened(desk: Kept, snapshot: StoredSnapshot) -> int:
    """Bytes of the frames that reading it opens."""
    with desk.open() as repository:
        return stats(repository, [snapshot], Mode.RAW_DATA).size


def test_what_the_newest_snapshot_needs_is_put_together(desk: Kept, tmp_path: Path) -> None:
    newest = scattered(desk, turns=8)
    with repositories_of_one(tmp_path / "fresh", desk.source) as (fresh, only):
        least = stats(fresh, [only], Mode.RAW_DATA).size
    before = opened(desk, newest)
    assert before > 1.2 * least, "or this shows nothing"
    assert opened(desk, _snapshots(desk)[0]) < before
    dry = desk.prune(ANY, scatter=TIDY, dry_run=True).plan
    assert dry.scatter > 1.2
    assert dry.scatter_left < 1.05
    result = desk.prune(ANY, scatter=TIDY)
    assert result.plan == dry
    assert result.plan.scattered
    assert opened(desk, newest) < 1.1 * least  # up to a third of 15 % stays, and frames are not the same
    again = desk.prune(ANY, scatter=TIDY)
    assert (again.plan.remove, again.plan.rewrite, again.bytes_written) == ([], [], 0)
    assert abs(again.plan.scatter - dry.scatter_left) < 0.05, "as it was said"
    desk.sound()


@contextlib.contextmanager
def repositories_of_one(folder: Path, source: Path) -> Iterator[tuple[Repository, StoredSnapshot]]:
    folder.mkdir()
    repositories.create(folder, volume_size=512 * KiB, chunks=CHUNKS)
    made = repositories.snapshot(folder, source)
    with repositories.open_(folder) as repository:
        yield repository, made


def test_where_little_is_scattered_or_nobody_wants_it_nothing_is_rewritten(desk: Kept) -> None:
    scattered(desk)
    assert desk.prune(ANY, scatter=Scatter(None), dry_run=True).plan.scattered == []
    assert desk.prune(ANY, scatter=Scatter(5.0, least=0), dry_run=True).plan.scattered == []
    assert desk.prune(ANY, dry_run=True).plan.scattered == [], "a megabyte is not worth it"


def test_no_more_is_rewritten_than_was_said_and_there_is_room_for(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    scattered(desk, turns=9)
    everything = desk.prune(ANY, scatter=TIDY, dry_run=True).plan
    assert len(everything.scattered) > 1
    most = max(use.volume.size for use in everything.scattered)
    some = desk.prune(ANY, scatter=TIDY, most=most, dry_run=True).plan
    assert 0 < some.read <= most
    assert everything.scatter_left < some.scatter_left < some.scatter
    monkeypatch.setattr(LocalStorage, "free", lambda self: 512 * KiB + most)
    assert 0 < sum(u.volume.size for u in desk.prune(ANY, scatter=TIDY, dry_run=True).plan.scattered) <= most
    monkeypatch.setattr(LocalStorage, "free", lambda self: 1000)
    assert desk.prune(ANY, scatter=TIDY, dry_run=True).plan.scattered == []
    monkeypatch.undo()
    # A little each time comes to the same, and to an end.
    for _ in range(20):
        if not desk.prune(ANY, scatter=TIDY, most=most).bytes_written:
            break
    assert desk.prune(ANY, scatter=TIDY, dry_run=True).plan.rewrite == []
    desk.sound()


def test_newest_snapshots_that_share_are_put_together_once(desk: Kept) -> None:
    """Two hosts, whose newest snapshots need some of the same: what is best for one is not for the other."""
    scattered(desk)
    make(desk.source, {b"text/%02d" % n: File(noise(9000, 5000 + n)) for n in range(0, 60, 2)})
    desk.take(host=b"other")
    make(desk.source, {b"text/%02d" % n: File(noise(9000, 6000 + n)) for n in range(0, 60, 3)})
    desk.take(host=b"third")
    assert desk.prune(ANY, scatter=TIDY).plan.scattered
    again = desk.prune(ANY, scatter=TIDY)
    assert (again.plan.remove, again.plan.rewrite) == ([], [])
    desk.sound()


@pytest.mark.parametrize("volumes", [1, 2, 99])
def test_what_was_put_together_counts_if_the_rest_stays_undone(
    desk: Kept, monkeypatch: pytest.MonkeyPatch, volumes: int
) -> None:
    """Killed after some volumes, or a writer came so that nothing was removed: everything live is there twice, wholly or in part.
    The next prune prefers the new copies, and does not write them again; the index may be another one."""
    newest = scattered(desk, turns=9)
    publish, taken = LocalObject.publish, list[Lease]()
    locks, one_by_one = Locks(str(desk.folder / "repository")), threading.Lock()

    class Dead(BaseException):
        pass

    def publish_some(self: LocalObject, name: str) -> None:
        nonlocal volumes
        with one_by_one:  # two workers publish
            if not volumes:
                raise Dead
            volumes -= 1
            publish(self, name)
            if not taken:
                taken.append(Lease(locks))

    monkeypatch.setattr(LocalObject, "publish", publish_some)
    written, killed = 0, volumes < 99
    try:
        written = desk.prune(ANY, scatter=TIDY).bytes_written
    except Dead:
        pass
    assert killed == (written == 0)
    monkeypatch.setattr(LocalObject, "publish", publish)
    desk.sound()
    taken[0].release()
    with desk.stranger("other") as repository:
        result = prune(repository, PruneOptions(unused=NONE, scatter=TIDY), Watch())
    assert result.bytes_removed > 0
    if not killed:
        assert result.bytes_written == 0, "it was done already"
    again = desk.prune(NONE, scatter=TIDY)
    assert (again.plan.remove, again.plan.rewrite) == ([], [])
    assert again.plan.scatter < 1.15
    # What was written before the death may lie a little scattered itself: less than is worth another prune.
    assert opened(desk, newest) < (1.15 if killed else 1.1) * sum(u.newest for u in _uses(desk))
    desk.sound()


def _uses(desk: Kept) -> list[VolumeUse]:
    with desk.open() as repository:
        return [*usage(repository, live_snapshots(repository.events.load()), Watch()).volumes.values()]


def test_what_is_scattered_stays_so_on_a_full_disk_and_takes_no_more_room(
    desk: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    scattered(desk, turns=9)
    doomed = desk.take()
    make(desk.source, {b"only": File(noise(400_000, 1234))})
    doomed = desk.take()
    (desk.source / "only").unlink()
    desk.take()
    desk.forget(doomed)
    before, write, publish, remove_all = (
        desk.size(),
        LocalObject.write,
        LocalObject.publish,
        LocalStorage.remove_all,
    )
    written, taken_back = list[str](), list[str]()

    def publish_until_full(self: LocalObject, name: str) -> None:
        publish(self, name)
        written.append(name)

    def bounded(self: LocalObject, *parts: bytes) -> None:
        if written and not taken_back:
            raise StorageError("repository: cannot write: No space left on device", errno.ENOSPC)
        write(self, *parts)

    def remove(self: LocalStorage, names: Iterable[str]) -> None:
        names = list(names)
        remove_all(self, names)
        taken_back.extend(name for name in names if name in written)

    monkeypatch.setattr(LocalObject, "publish", publish_until_full)
    monkeypatch.setattr(LocalObject, "write", bounded)
    monkeypatch.setattr(LocalStorage, "remove_all", remove)
    watch = Watch()
    with desk.open() as repository:
        result = prune(repository, PruneOptions(unused=NONE, scatter=TIDY), watch)
    assert result.plan.scattered
    assert result.plan.scatter_left == result.plan.scatter
    assert any("scattered" in notice for notice in watch.notices)
    assert desk.size() == before - result.freed < before
    assert taken_back, "or this shows nothing"
    assert not any(use.copies for use in _uses(desk)), "what was written for nothing is gone again"
    desk.sound()
    desk.prune(NONE, scatter=TIDY)
    assert desk.prune(NONE, scatter=TIDY, dry_run=True).plan.rewrite == []
    desk.sound()


def test_what_compresses_well_counts_for_what_it_takes(desk: Kept) -> None:
    """Beside what does not, in one volume: the share of the plaintext would say many times what is freed."""
    make(desk.source, {b"words": File(b"".join(b"line %d of many\n" % n for n in range(300_000)))})
    gone = desk.take()
    (desk.source / "words").unlink()
    desk.take()
    desk.forget(gone)
    result = desk.prune()
    assert 150_000 < result.plan.freed < 300_000
    assert abs(result.plan.freed - result.freed) < 64 * KiB, "padding: a full volume lacks up to a frame"
    desk.sound()
